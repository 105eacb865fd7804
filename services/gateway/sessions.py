"""Sessions of users: what a login begins, and what ends with it.

Spec: C-S API §Using access tokens, §Relationship between access tokens and devices, §Refreshing access tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matrixcore.identifiers import UserId
from tessera.clock import Clock
from tessera.config import Settings
from tessera.fanout import DeviceWake, Fanout, SessionEnd
from tessera.ids import IdSource
from tessera.storage import access_tokens, device_keys, devices, user_log
from tessera.storage.access_tokens import NewTokens, hash_token
from tessera.storage.database import Transaction
from tessera.storage.user_log import LogEntry, UserLogKind


@dataclass(frozen=True, slots=True)
class TokenLifetimes:
    """How long tokens live, in milliseconds; None is for ever.

    Attributes:
        refreshable_ms: access tokens of clients that can refresh them.
        plain_ms: access tokens of clients that cannot.
        refresh_ms: refresh tokens.
        session_ms: a login with all refreshes after it.
    """

    refreshable_ms: int | None = 300_000
    plain_ms: int | None = None
    refresh_ms: int | None = None
    session_ms: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> "TokenLifetimes":
        """As the operator set them."""
        return cls(
            settings.refreshable_access_token_lifetime,
            settings.nonrefreshable_access_token_lifetime,
            settings.refresh_token_lifetime,
            settings.session_lifetime,
        )


@dataclass(frozen=True, slots=True)
class IssuedTokens:
    """Tokens as the client gets them."""

    access_token: str
    expires_in_ms: int | None
    refresh_token: str | None

    def fields(self) -> dict[str, str | int]:
        """The fields of an answer that carries them."""
        fields: dict[str, str | int] = {"access_token": self.access_token}
        if self.expires_in_ms is not None:
            fields["expires_in_ms"] = self.expires_in_ms
        if self.refresh_token is not None:
            fields["refresh_token"] = self.refresh_token
        return fields


@dataclass(slots=True)
class Wakes:
    """What to publish after the COMMIT of a change of sessions."""

    heads: dict[UserId, int]
    device_position: int | None = None
    users: tuple[UserId, ...] = ()
    ended: tuple[SessionEnd, ...] = ()

    async def publish(self, fanout: Fanout) -> None:
        """Tell the services that hold the users' connections or remember their tokens; only after COMMIT."""
        if self.ended:
            await fanout.publish_session_ends(self.ended)
        if self.heads:
            await fanout.publish_user_wakes(user_log.wakes_of(self.heads))
        if self.device_position is not None:
            await fanout.publish_device_wake(DeviceWake(self.device_position, self.users))


def make_tokens(
    ids: IdSource, lifetimes: TokenLifetimes, now_ms: int, *, refreshable: bool, session_expires_ts: int | None = None
) -> tuple[IssuedTokens, NewTokens]:
    """New tokens, for the client and for storage; nothing outlives the session."""
    if session_expires_ts is None and lifetimes.session_ms is not None:
        session_expires_ts = now_ms + lifetimes.session_ms
    lifetime = lifetimes.refreshable_ms if refreshable else lifetimes.plain_ms
    expires_ts = _earlier(None if lifetime is None else now_ms + lifetime, session_expires_ts)
    issued = IssuedTokens(
        ids.access_token(),
        None if expires_ts is None else expires_ts - now_ms,
        ids.refresh_token() if refreshable else None,
    )
    stored = NewTokens(
        hash_token(issued.access_token),
        expires_ts,
        None if issued.refresh_token is None else hash_token(issued.refresh_token),
        _earlier(None if lifetimes.refresh_ms is None else now_ms + lifetimes.refresh_ms, session_expires_ts),
        session_expires_ts,
    )
    return issued, stored


async def start_session(
    tx: Transaction,
    clock: Clock,
    ids: IdSource,
    lifetimes: TokenLifetimes,
    user_id: UserId,
    device_id: str,
    display_name: str | None,
    *,
    refreshable: bool,
    address: str | None = None,
) -> tuple[IssuedTokens, Wakes]:
    """Log a device in, from an IP address. A known one keeps its name, keys and inbox; its old tokens are dead at once.

    Without an address somebody else logs it in, and it has not been seen.
    """
    now_ms = clock.now_ms()
    issued, stored = make_tokens(ids, lifetimes, now_ms, refreshable=refreshable)
    is_new = await access_tokens.add_session(
        tx, user_id, device_id, display_name, stored, now_ms=now_ms, address=address
    )
    if is_new:
        return issued, Wakes({})
    heads = await user_log.append(tx, [LogEntry(user_id, UserLogKind.SESSION_ENDED, key=device_id)])
    return issued, Wakes(heads, ended=(SessionEnd(user_id, device_id),))


async def end_devices(tx: Transaction, user_id: UserId, device_ids: Sequence[str]) -> Wakes:
    """Delete devices with their tokens, pushers, keys and inboxes. Unknown ones are ignored; repeatable."""
    gone = await devices.delete_devices(tx, user_id, device_ids)
    if not gone:
        return Wakes({})
    heads = await user_log.append(
        tx, [LogEntry(user_id, UserLogKind.SESSION_ENDED, key=device_id) for device_id in gone]
    )
    # Last, since it takes the one row that all changes of devices share.
    position = await device_keys.delete_device_data(tx, user_id, gone)
    ended = tuple(SessionEnd(user_id, device_id) for device_id in gone)
    return Wakes(heads, position, (user_id,), ended)


async def end_all_devices(tx: Transaction, user_id: UserId, *, but: str | None = None) -> Wakes:
    """Delete all devices of a user, or all but one."""
    device_ids = await devices.list_device_ids(tx, user_id)
    return await end_devices(tx, user_id, [device_id for device_id in device_ids if device_id != but])


def _earlier(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return second if first is None else first
    return min(first, second)
