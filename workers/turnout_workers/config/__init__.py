"""From `turnout.toml` and the environment to checked values, and to the accounts and endpoints of the fleet."""

from turnout_workers.config.endpoints import accounts, fleet
from turnout_workers.config.loading import UNCONFIGURED, Settings, Webhook, configured, find, load, settings
from turnout_workers.config.toml_lines import ConfigError

__all__ = [
    "UNCONFIGURED",
    "ConfigError",
    "Settings",
    "Webhook",
    "accounts",
    "configured",
    "find",
    "fleet",
    "load",
    "settings",
]
