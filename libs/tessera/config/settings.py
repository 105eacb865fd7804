"""`Settings`: homeserver.yaml after it was checked."""

from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AliasChoices, Field, PrivateAttr, SecretStr, field_validator

from matrixcore.identifiers import parse_server_name
from tessera.config.accounts import AccountKeys
from tessera.config.database import DEFAULT_SHARD, DatabaseSettings, TesseraSettings
from tessera.config.federation import MinimumTls
from tessera.config.listeners import LOOPBACK, Listener, Resource
from tessera.config.rate_limits import RateLimit, RateLimits
from tessera.config.sections import (
    DirectoryRule,
    KeyId,
    MatrixRtc,
    OldSigningKey,
    PasswordConfig,
    Pool,
    Presence,
    Push,
    ServerNotices,
    TrustedKeyServer,
    UserDirectory,
)
from tessera.config.single_sign_on import SingleSignOnKeys
from tessera.config.url_previews import UrlPreviews
from tessera.config.values import Duration, FilePath, Name, Network, RoomVersion, Size

# Networks that other people's servers must not make us call.
_PRIVATE = (
    *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"),
    *("0.0.0.0/8", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24"),
    *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "::/128", "::1/128", "fe80::/10", "fc00::/7"),
    *("2001:db8::/32", "ff00::/8", "fec0::/10"),
)
PRIVATE_NETWORKS = tuple(ip_network(network) for network in _PRIVATE)

DAY_MS = 86_400_000

DEFAULT_LISTENERS = (
    Listener(
        port=8008,
        bind_addresses=LOOPBACK,
        x_forwarded=True,
        resources=(Resource(names=("client", "federation", "media", "metrics", "health")),),
    ),
)


class Settings(RateLimits, UrlPreviews, AccountKeys, SingleSignOnKeys):
    """One homeserver.yaml. The names are those of the file's keys.

    Durations are milliseconds and sizes bytes. Paths are absolute. Secrets are `SecretStr`; one that the file
    gives by `<key>_path` stands in `<key>`.
    """

    server_name: Name
    public_baseurl: str | None = None
    serve_server_wellknown: bool = False
    extra_well_known_client_content: dict[str, Any] = Field(default_factory=dict)
    web_client_location: str | None = None
    admin_contact: str | None = None
    pid_file: FilePath | None = None
    report_stats: bool | None = None  # nothing is ever reported; the key is in every file that Synapse made

    listeners: tuple[Listener, ...] = DEFAULT_LISTENERS
    tls_certificate_path: FilePath | None = None
    tls_private_key_path: FilePath | None = None

    signing_key: SecretStr | None = None
    signing_key_path: FilePath | None = None
    old_signing_keys: dict[KeyId, OldSigningKey] = Field(default_factory=dict)
    key_refresh_interval: Duration = DAY_MS
    trusted_key_servers: tuple[TrustedKeyServer, ...] = (TrustedKeyServer(server_name=parse_server_name("matrix.org")),)

    registration_shared_secret: SecretStr | None = None
    password_config: PasswordConfig = PasswordConfig()
    allow_guest_access: bool = False
    enable_set_displayname: bool = True
    enable_set_avatar_url: bool = True
    session_lifetime: Duration | None = None
    refreshable_access_token_lifetime: Duration | None = 5 * 60 * 1000
    nonrefreshable_access_token_lifetime: Duration | None = None
    refresh_token_lifetime: Duration | None = None
    delete_stale_devices_after: Duration | None = None
    user_ips_max_age: Duration | None = 28 * DAY_MS

    default_room_version: RoomVersion = "12"
    max_event_delay_duration: Duration | None = DAY_MS
    redaction_retention_period: Duration | None = 7 * DAY_MS
    forgotten_room_retention_period: Duration | None = None
    server_notices: ServerNotices | None = None
    alias_creation_rules: tuple[DirectoryRule, ...] = (DirectoryRule(),)
    room_list_publication_rules: tuple[DirectoryRule, ...] = (DirectoryRule(),)
    allow_public_rooms_without_auth: bool = False
    allow_public_rooms_over_federation: bool = False
    presence: Presence = Presence()
    user_directory: UserDirectory = UserDirectory()
    require_auth_for_profile_requests: bool = False
    limit_profile_requests_to_users_who_share_rooms: bool = False
    push: Push = Push()
    app_service_config_files: tuple[FilePath, ...] = ()

    media_store_path: FilePath | None = None
    max_upload_size: Size = 50 << 20
    max_image_pixels: Size = 32 << 20
    max_pending_media_uploads: Annotated[int, Field(ge=1)] = 5
    unused_expiration_time: Duration = DAY_MS
    enable_authenticated_media: bool = True

    matrix_rtc: MatrixRtc = MatrixRtc()
    turn_uris: tuple[str, ...] = ()
    turn_shared_secret: SecretStr | None = None
    turn_username: str | None = None
    turn_password: SecretStr | None = None
    turn_user_lifetime: Duration = 3_600_000
    turn_allow_guests: bool = True

    federation_domain_whitelist: frozenset[Name] | None = None
    federation_custom_ca_list: tuple[FilePath, ...] = ()
    federation_verify_certificates: bool = True
    federation_certificate_verification_whitelist: tuple[str, ...] = ()
    federation_client_minimum_tls_version: MinimumTls = "1.2"
    https_proxy: SecretStr | None = None
    no_proxy_hosts: tuple[str, ...] = ()
    use_insecure_ssl_client_just_for_testing_do_not_use: bool = False
    ip_range_blocklist: tuple[Network, ...] = Field(
        default=PRIVATE_NETWORKS,
        validation_alias=AliasChoices("ip_range_blocklist", "ip_range_blacklist"),
    )
    ip_range_allowlist: tuple[Network, ...] = Field(
        default=(), validation_alias=AliasChoices("ip_range_allowlist", "ip_range_whitelist")
    )

    database: DatabaseSettings | None = None
    log_config: FilePath | None = None
    tessera: TesseraSettings = TesseraSettings()

    _unused_keys: tuple[str, ...] = PrivateAttr(default=())

    @classmethod
    def for_tests(cls, **overrides: Any) -> Self:
        """Settings of a server `test.example` with secrets, registration and loose limits; keys may be replaced."""
        defaults: dict[str, Any] = {
            "server_name": "test.example",
            "signing_key": "ed25519 test " + "A" * 43,
            "registration_shared_secret": "the-shared-secret",
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "trusted_key_servers": [],
        }
        # Tests need not wait for a disk.
        own = {"allow_unsafe_postgres": True, **overrides.pop("tessera", {})}
        return cls.model_validate(defaults | overrides | {"tessera": own})

    def rate_limits(self) -> dict[str, RateLimit]:
        """Every bucket by its path, our own too: `tessera.rc_refresh`."""
        policy = self.tessera.policy_server
        return {
            **super().rate_limits(),
            **({} if policy is None else {"tessera.policy_server.rc_sender": policy.rc_sender}),
            "tessera.rc_refresh": self.tessera.rc_refresh,
            "tessera.rc_sso": self.tessera.rc_sso,
            "tessera.oauth.rc_address": self.tessera.oauth.rc_address,
            "tessera.federation.rc_notary": self.tessera.federation.rc_notary,
        }

    @field_validator("public_baseurl")
    @classmethod
    def _check_baseurl(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not url.startswith(("https://", "http://")) or len(url) <= len("https://"):
            raise ValueError("must be a URL such as https://matrix.example.org/")
        return url if url.endswith("/") else url + "/"

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """Keys of the file that are known and have no effect here, for a warning."""
        return self._unused_keys

    def with_unused(self, keys: Iterable[str]) -> Self:
        """The same settings, remembering which keys of their file have no effect."""
        self._unused_keys = tuple(keys)
        return self

    @property
    def data_dir(self) -> Path:
        """Where the embedded PostgreSQL and the rest of the server's own files lie."""
        return self.tessera.data_dir

    @property
    def media_directory(self) -> Path:
        """Where the media lie: media_store_path, else `media` in the data directory."""
        return self.media_store_path or self.data_dir / "media"

    @property
    def signing_key_file(self) -> Path:
        """The file of the signing key: signing_key_path, else `<server name>.signing.key` in the data directory."""
        return self.signing_key_path or self.data_dir / f"{self.server_name}.signing.key"

    @property
    def client_baseurl(self) -> str:
        """Where clients reach the server, with a slash at the end."""
        return self.public_baseurl or f"https://{self.server_name}/"

    @property
    def uses_embedded_postgres(self) -> bool:
        """Whether no database is named, so that Tessera starts its own."""
        return self.accounts_dsn is None

    @property
    def accounts_dsn(self) -> str | None:
        """The account store's URL; None means the embedded PostgreSQL."""
        if self.tessera.accounts_dsn is not None:
            return self.tessera.accounts_dsn.get_secret_value()
        return None if self.database is None else self.database.args.dsn()

    def shard_dsns(self, default_dsn: str) -> dict[str, str]:
        """The room databases by name; `default_dsn` (the account store's) holds them if none is named."""
        named = {name: dsn.get_secret_value() for name, dsn in self.tessera.shards.items()}
        return named or {DEFAULT_SHARD: default_dsn}

    @property
    def pool(self) -> Pool:
        """The bounds of the connection pools: tessera.pool, else cp_min and cp_max."""
        if self.tessera.pool is not None:
            return self.tessera.pool
        if self.database is not None:
            return Pool(min_size=self.database.args.cp_min, max_size=self.database.args.cp_max)
        return Pool()
