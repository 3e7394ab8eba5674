"""From `turnout.toml` and the environment to checked values, and to the accounts and endpoints of the fleet."""

from turnout_workers.config.endpoints import accounts, fleet
from turnout_workers.config.loading import Settings, Source, configured, load, source
from turnout_workers.config.toml_lines import ConfigError

__all__ = ["ConfigError", "Settings", "Source", "accounts", "configured", "fleet", "load", "source"]
