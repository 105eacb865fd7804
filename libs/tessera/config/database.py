"""Which PostgreSQL holds what."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlencode

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, PositiveInt, SecretStr

from tessera.config.accounts import Policy
from tessera.config.federation import FederationSettings
from tessera.config.kafka import KafkaSettings
from tessera.config.oauth import OAuthSettings
from tessera.config.policy_server import PolicyServerSettings
from tessera.config.rate_limits import RateLimit
from tessera.config.redis import RedisSettings
from tessera.config.sections import Pool, Support
from tessera.config.services import InstanceName, ServiceName, ServiceSettings
from tessera.config.telemetry import TelemetrySettings
from tessera.config.values import FilePath, Network, Section

DEFAULT_SHARD = "main"


def _check_dsn(dsn: SecretStr) -> SecretStr:
    if not dsn.get_secret_value().startswith(("postgresql://", "postgres://")):
        raise ValueError("must be a postgresql:// URL")
    return dsn


def _refuse_sqlite(value: object) -> object:
    if value == "sqlite3":
        raise ValueError(
            "SQLite is not supported; leave the whole `database` key out for the PostgreSQL that Tessera starts itself"
        )
    return value


Dsn = Annotated[SecretStr, AfterValidator(_check_dsn)]
ShardName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,40}$")]


class DatabaseArguments(Section):
    """The arguments of Synapse's database connection that mean something here."""

    user: str | None = None
    password: SecretStr | None = None
    database: str | None = Field(default=None, validation_alias=AliasChoices("dbname", "database"))
    host: str | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = None
    sslrootcert: FilePath | None = None
    cp_min: PositiveInt = 1
    cp_max: PositiveInt = 10
    keepalives_idle: int | None = None
    keepalives_interval: int | None = None
    keepalives_count: int | None = None

    def dsn(self) -> str:
        """The connection as a URL, with the password in it."""
        login = "" if self.user is None else quote(self.user, safe="")
        if self.password is not None:
            login += ":" + quote(self.password.get_secret_value(), safe="")
        # A directory with a socket, or more than one host, can only stand among the parameters.
        plain = self.host is not None and not self.host.startswith("/") and "," not in self.host
        place = f"[{self.host}]" if plain and ":" in (self.host or "") else (self.host or "") if plain else ""
        if plain and self.port is not None:
            place += f":{self.port}"
        parameters = {
            "host": None if plain else self.host,
            "port": None if plain or self.port is None else str(self.port),
            "sslmode": self.sslmode,
            "sslrootcert": None if self.sslrootcert is None else str(self.sslrootcert),
        }
        query = urlencode({name: value for name, value in parameters.items() if value is not None})
        authority = f"{login}@{place}" if login else place
        path = quote(self.database or self.user or "", safe="")
        return f"postgresql://{authority}/{path}" + (f"?{query}" if query else "")


class DatabaseSettings(Section):
    """Synapse's `database`. Its driver does not matter: it is PostgreSQL either way."""

    name: Annotated[Literal["psycopg2", "asyncpg"], BeforeValidator(_refuse_sqlite)] = "psycopg2"
    args: DatabaseArguments = DatabaseArguments()
    txn_limit: int = 0
    allow_unsafe_locale: bool = False


class TesseraSettings(Section):
    """The keys that are our own.

    Attributes:
        data_dir: where the embedded PostgreSQL, the media and the logs lie.
        accounts_dsn: the account store; absent, it is `database`, and without that the embedded PostgreSQL.
        shards: the room databases by name; absent, the rooms lie beside the accounts.
        partitions: fixed when the database is made.
        pgbouncer: there is a PgBouncer in transaction mode in front of PostgreSQL.
        allow_unsafe_postgres: start although PostgreSQL's settings (fsync, synchronous_commit...) let it forget what it
            acknowledged. For tests.
        verify_key_signatures: refuse device keys and one-time keys that their device has not signed. Clients check
            them anyway; Synapse takes what comes.
        terms: documents that whoever registers accepts, by a name for programs.
        trusted_proxies: networks of reverse proxies whose X-Forwarded-For is believed, beside private networks.
        rc_refresh: exchanges of refresh tokens, by device. Synapse does not limit them.
        rc_sso: single sign-ons that are begun, by address. Nor these.
        services: what differs between the processes of a cluster.
        instance_name: of this process, kept over restarts; partitions are handed over to it. Absent, the host's name.
        drain_seconds: how long a process that is told to end may take for what it has begun.
        drain_notice_seconds: how long it still takes requests after /ready says 503, so that a load balancer
            notices first.
        kafka: the topics between separate services; one process needs none.
        redis: the wake-ups between separate services; one process needs none.
        telemetry: where traces go.
        federation: what Synapse has no keys for.
        policy_server: what this server recommends in rooms whose policy server it is; absent, it is none's.
        oauth: whether clients may log in by the OAuth 2.0 API.
    """

    data_dir: FilePath = Path()
    accounts_dsn: Dsn | None = None
    shards: Mapping[ShardName, Dsn] = Field(default_factory=dict)
    partitions: Annotated[int, Field(ge=1, le=4096)] = 64
    pgbouncer: bool = False
    allow_unsafe_postgres: bool = False
    verify_key_signatures: bool = False
    terms: Mapping[str, Policy] = Field(default_factory=dict)
    trusted_proxies: tuple[Network, ...] = ()
    rc_refresh: RateLimit = RateLimit(per_second=0.1, burst_count=10)
    rc_sso: RateLimit = RateLimit(per_second=2, burst_count=100)
    pool: Pool | None = None
    services: Mapping[ServiceName, ServiceSettings] = Field(default_factory=dict)
    instance_name: InstanceName | None = None
    drain_seconds: Annotated[float, Field(ge=0, le=600)] = 10.0
    drain_notice_seconds: Annotated[float, Field(ge=0, le=120)] = 0.0
    kafka: KafkaSettings | None = None
    redis: RedisSettings | None = None
    telemetry: TelemetrySettings = TelemetrySettings()
    federation: FederationSettings = FederationSettings()
    policy_server: PolicyServerSettings | None = None
    oauth: OAuthSettings = OAuthSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] | None = None
    support: Support = Support()
