"""Where Kafka is, and what its topics must be like.

Spec: DESIGN.md sections 3, 9 and 10.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, SecretStr, field_validator, model_validator

from tessera.config.values import Duration, FilePath, Section, Texts

_HOUR_MS = 3_600_000
# A request may be parked this long at the broker and must still be answered in time.
_MARGIN_MS = 500


class KafkaSettings(Section):
    """The topics between separate services; one process needs none.

    Attributes:
        bootstrap_servers: host:port of some of the brokers.
        topic_prefix: of every topic's name, so that several installations share a cluster.
        ssl_cafile: of the brokers' certificates; absent, the system's.
        ssl_certfile: our own certificate, with ssl_keyfile.
        request_timeout: milliseconds after which a command counts as not taken; below every HTTP deadline.
        fetch_max_wait: milliseconds that an idle fetch stays parked at the broker, which answers at once when a record
            comes. 10 to 20 ms only for brokers where a produce does not wake it.
        replication_factor: of the topics; 1 loses what lies in them with a broker (never what was acknowledged).
        retention: milliseconds that the topics keep records; who was away longer reads PostgreSQL.
        max_in_flight: commands and records that one process has under way, beyond which sends answer 503.
        max_in_flight_bytes: the same in bytes.
    """

    bootstrap_servers: Texts
    topic_prefix: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{0,100}$")] = ""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: FilePath | None = None
    ssl_certfile: FilePath | None = None
    ssl_keyfile: FilePath | None = None
    request_timeout: Annotated[Duration, Field(ge=1_000, le=20_000)] = 5_000
    fetch_max_wait: Annotated[Duration, Field(ge=1, le=10_000)] = 500
    replication_factor: Annotated[int, Field(ge=1, le=32_767)] = 3
    min_insync_replicas: PositiveInt = 2
    retention: Annotated[Duration, Field(ge=_HOUR_MS)] = 72 * _HOUR_MS
    max_in_flight: PositiveInt = 5_000
    max_in_flight_bytes: PositiveInt = 32 << 20

    @field_validator("bootstrap_servers")
    @classmethod
    def _check_servers(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        for server in servers:
            host, _, port = server.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
                raise ValueError("must be host:port, or a list of them")
        if not servers:
            raise ValueError("must name at least one host:port")
        return servers

    @model_validator(mode="after")
    def _check_together(self) -> "KafkaSettings":
        if self.security_protocol.startswith("SASL") and (self.sasl_username is None or self.sasl_password is None):
            raise ValueError(f"security_protocol {self.security_protocol} needs sasl_username and sasl_password")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        if self.min_insync_replicas > self.replication_factor:
            raise ValueError("min_insync_replicas must not be larger than replication_factor")
        if self.fetch_max_wait + _MARGIN_MS > self.request_timeout:
            raise ValueError(f"request_timeout must be {_MARGIN_MS} ms longer than fetch_max_wait")
        return self
