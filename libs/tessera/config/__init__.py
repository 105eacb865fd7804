"""The configuration: homeserver.yaml and the environment, checked once, frozen afterwards."""

from tessera.config.errors import ConfigError, Problem
from tessera.config.listeners import Listener
from tessera.config.rate_limits import RateLimit
from tessera.config.settings import Settings

__all__ = ["ConfigError", "Listener", "Problem", "RateLimit", "Settings"]
