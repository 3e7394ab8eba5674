"""Turns `turnout.toml` and the environment into checked values, and those into the fleet's accounts and endpoints."""

from turnout_workers.config.endpoints import accounts, fleet
from turnout_workers.config.loading import Settings, Source, configured, load, source
from turnout_workers.config.toml_lines import ConfigError

__all__ = ["ConfigError", "Settings", "Source", "accounts", "configured", "fleet", "load", "source"]
