"""The configuration: homeserver.yaml and the environment, checked once, frozen afterwards."""

from tessera.config.consistency import load_appservices, load_signing_keys
from tessera.config.errors import ConfigError, Problem
from tessera.config.generating import generate_config
from tessera.config.kafka import KafkaSettings
from tessera.config.listeners import Listener
from tessera.config.rate_limits import RateLimit
from tessera.config.reading import read_settings
from tessera.config.redis import RedisAddress, RedisSettings, parse_redis_url
from tessera.config.settings import Settings

__all__ = [
    "ConfigError",
    "KafkaSettings",
    "Listener",
    "Problem",
    "RateLimit",
    "RedisAddress",
    "RedisSettings",
    "Settings",
    "generate_config",
    "load_appservices",
    "load_signing_keys",
    "parse_redis_url",
    "read_settings",
]
