"""The rc_* settings, with Synapse's shapes and defaults."""

from collections.abc import Iterator
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, NonNegativeFloat, PositiveInt

from tessera.config.values import Duration, Section


class RateLimit(Section):
    """A bucket that holds `burst_count` actions and refills with `per_second`."""

    per_second: NonNegativeFloat = 0.17
    burst_count: PositiveInt = 3


def _with_defaults(per_second: float, burst_count: int) -> BeforeValidator:
    """A file may give only one of the two numbers; the other keeps the default of that limit."""

    def fill(value: object) -> object:
        if isinstance(value, dict):
            return {"per_second": per_second, "burst_count": burst_count} | value
        return value

    return BeforeValidator(fill)


Slow: TypeAlias = Annotated[RateLimit, _with_defaults(0.003, 5)]
Modest: TypeAlias = Annotated[RateLimit, _with_defaults(0.17, 3)]


class LoginLimits(Section):
    """Logins by address, by account, and failed ones by account."""

    address: Slow = RateLimit(per_second=0.003, burst_count=5)
    account: Slow = RateLimit(per_second=0.003, burst_count=5)
    failed_attempts: Modest = RateLimit(per_second=0.17, burst_count=3)


class JoinLimits(Section):
    """Joins by user: of rooms that this server is in, and of others."""

    local: Annotated[RateLimit, _with_defaults(0.1, 10)] = RateLimit(per_second=0.1, burst_count=10)
    remote: Annotated[RateLimit, _with_defaults(0.01, 10)] = RateLimit(per_second=0.01, burst_count=10)


class InviteLimits(Section):
    """Invites by room, by the user invited, and by the user who invites."""

    per_room: Annotated[RateLimit, _with_defaults(0.3, 10)] = RateLimit(per_second=0.3, burst_count=10)
    per_user: Slow = RateLimit(per_second=0.003, burst_count=5)
    per_issuer: Annotated[RateLimit, _with_defaults(0.3, 10)] = RateLimit(per_second=0.3, burst_count=10)


class PresenceLimits(Section):
    """Changes of presence by user."""

    per_user: Annotated[RateLimit, _with_defaults(0.1, 1)] = RateLimit(per_second=0.1, burst_count=1)


class FederationLimits(Section):
    """Requests of one peer: above sleep_limit in a window each is delayed, above reject_limit refused."""

    window_size: Duration = 1000
    sleep_limit: PositiveInt = 10
    sleep_delay: Duration = 500
    reject_limit: PositiveInt = 50
    concurrent: PositiveInt = 3


class RateLimits(Section):
    """All rc_* keys; `Settings` inherits them."""

    rc_message: Annotated[RateLimit, _with_defaults(0.2, 10)] = RateLimit(per_second=0.2, burst_count=10)
    rc_registration: Modest = RateLimit(per_second=0.17, burst_count=3)
    rc_registration_token_validity: Annotated[RateLimit, _with_defaults(0.1, 5)] = RateLimit(
        per_second=0.1, burst_count=5
    )
    rc_login: LoginLimits = LoginLimits()
    rc_joins: JoinLimits = JoinLimits()
    rc_joins_per_room: Annotated[RateLimit, _with_defaults(1, 10)] = RateLimit(per_second=1, burst_count=10)
    rc_invites: InviteLimits = InviteLimits()
    rc_admin_redaction: Modest | None = None
    rc_3pid_validation: Slow = RateLimit(per_second=0.003, burst_count=5)
    rc_third_party_invite: Annotated[RateLimit, _with_defaults(0.0025, 5)] = RateLimit(per_second=0.0025, burst_count=5)
    rc_key_requests: Annotated[RateLimit, _with_defaults(20, 100)] = RateLimit(per_second=20, burst_count=100)
    rc_media_create: Annotated[RateLimit, _with_defaults(10, 50)] = RateLimit(per_second=10, burst_count=50)
    rc_presence: PresenceLimits = PresenceLimits()
    rc_delayed_event_mgmt: Annotated[RateLimit, _with_defaults(1, 5)] = RateLimit(per_second=1, burst_count=5)
    rc_room_creation: Annotated[RateLimit, _with_defaults(0.016, 10)] = RateLimit(per_second=0.016, burst_count=10)
    rc_reports: Annotated[RateLimit, _with_defaults(1, 5)] = RateLimit(per_second=1, burst_count=5)
    rc_user_directory: Annotated[RateLimit, _with_defaults(0.016, 200)] = RateLimit(per_second=0.016, burst_count=200)
    rc_profile: Annotated[RateLimit, _with_defaults(1, 500)] = RateLimit(per_second=1, burst_count=500)
    rc_federation: FederationLimits = FederationLimits()

    def rate_limits(self) -> dict[str, RateLimit]:
        """Every bucket by its path: `rc_message`, `rc_login.address`, ...; rc_admin_redaction only where it is set."""
        return dict(_walk(self, ""))


def _walk(section: Section, prefix: str) -> Iterator[tuple[str, RateLimit]]:
    for key in type(section).model_fields:
        value = getattr(section, key)
        if prefix or key.startswith("rc_"):
            if isinstance(value, RateLimit):
                yield prefix + key, value
            elif isinstance(value, Section):
                yield from _walk(value, f"{prefix}{key}.")
