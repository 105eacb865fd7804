"""What push gateways are still to be told: a queue for each pusher, and when each is to be tried.

Whoever takes a pusher moves its time ahead, which keeps others off it for that long; times are PostgreSQL's. What is
queued is deleted once the gateway has answered, so that a crash between the two repeats it.

Spec: Push Gateway API; DESIGN.md section 2, invariant 3.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matrixcore.identifiers import EventId, RoomId, UserId
from tessera.storage.database import Transaction

CLAIM_SECONDS = 60.0  # longer than one pusher is worked on
MAX_QUEUED = 100  # notifications of a pusher whose gateway fails; older ones are dropped
MAX_AGE_SECONDS = 24 * 3600.0  # of a notification
MAIL_INTERVAL_SECONDS = 3600  # between two mails of a pusher
KINDS = ("http",)  # of pushers, where the operator has no mail


class PusherKey(NamedTuple):
    """A pusher."""

    user_id: UserId
    app_id: str
    pushkey: str


class DuePusher(NamedTuple):
    """A pusher that is to be served now.

    Attributes:
        version: of what was due when it was taken.
        badge: the counts are to be sent even without a notification.
        attempts: that have failed since the last one that did not.
        created_ts: of the pusher, milliseconds.
    """

    key: PusherKey
    version: int
    badge: bool
    attempts: int
    kind: str
    data: bytes
    created_ts: int


class Queued(NamedTuple):
    """A notification that waits; `tweaks` is a JSON object."""

    queue_id: int
    room_id: RoomId
    event_id: EventId
    tweaks: bytes


class Notice(NamedTuple):
    """A notification for all pushers of a user."""

    user_id: UserId
    room_id: RoomId
    event_id: EventId
    tweaks: bytes


class PushedMember(NamedTuple):
    """A local user with pushers who is in a room; `own_rules` as they are stored, None for the defaults."""

    room_id: RoomId
    user_id: UserId
    position: int  # of the record that made the user a member, or changed that
    own_rules: bytes | None


_MARK_DUE = """
INSERT INTO accounts.push_due AS d (user_id, app_id, pushkey, due_at, badge)
SELECT user_id, app_id, pushkey, {due}, {badge} FROM {pushers}
ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET version = d.version + 1, badge = d.badge OR EXCLUDED.badge,
    due_at = CASE WHEN d.attempts = 0 AND NOT d.claimed THEN least(d.due_at, EXCLUDED.due_at) ELSE d.due_at END
"""

# A mail gathers for a while, and the next one has time: meanwhile so many notifications are kept for it, no more.
_MAIL_DUE = f"greatest(now() + make_interval(secs => $6), mailed_at + interval '{MAIL_INTERVAL_SECONDS} seconds')"
_HAS_SPACE = f"""
(p.kind <> 'email' OR {MAX_QUEUED} > (
    SELECT count(*) FROM (
        SELECT FROM accounts.push_queue q
        WHERE (q.user_id, q.app_id, q.pushkey) = (p.user_id, p.app_id, p.pushkey) LIMIT {MAX_QUEUED}
    ) waiting
))"""  # noqa: S608  constant text

# A pusher that is being served keeps its time: it is looked at again when that is done (`version`).
_ADD = f"""
WITH queued AS (
    INSERT INTO accounts.push_queue (user_id, app_id, pushkey, room_id, event_id, tweaks)
    SELECT p.user_id, p.app_id, p.pushkey, i.room_id, i.event_id, i.tweaks
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[]) AS i (user_id, room_id, event_id, tweaks)
    JOIN accounts.pushers p ON p.user_id = i.user_id AND p.kind = ANY($7::text[]) AND p.enabled AND {_HAS_SPACE}
    ON CONFLICT DO NOTHING
    RETURNING user_id, app_id, pushkey
)
{
    _MARK_DUE.format(
        due=f"CASE WHEN kind = 'email' THEN {_MAIL_DUE} ELSE now() + random() * make_interval(secs => $5) END",
        badge="false",
        pushers="(SELECT DISTINCT * FROM queued) q JOIN accounts.pushers USING (user_id, app_id, pushkey)",
    )
}
"""  # noqa: S608  constant text

_MARK_BADGES = _MARK_DUE.format(
    due="now()", badge="true", pushers="accounts.pushers WHERE user_id = ANY($1::text[]) AND kind = 'http' AND enabled"
)

_TAKE = """
WITH taken AS (
    SELECT user_id, app_id, pushkey FROM accounts.push_due WHERE due_at <= now()
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE accounts.push_due d SET due_at = now() + make_interval(secs => $2), claimed = true
FROM taken t JOIN accounts.pushers p USING (user_id, app_id, pushkey)
WHERE d.user_id = t.user_id AND d.app_id = t.app_id AND d.pushkey = t.pushkey
RETURNING d.user_id, d.app_id, d.pushkey, d.version, d.badge, d.attempts, p.kind, p.data, p.created_ts
"""

_LIST_QUEUED = """
SELECT queue_id, room_id, event_id, tweaks FROM accounts.push_queue
WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 ORDER BY queue_id LIMIT $4
"""

_DELETE_QUEUED = "DELETE FROM accounts.push_queue WHERE queue_id = ANY($1::bigint[])"

# What came meanwhile has raised the version: then there is more to do at once.
_FINISH = """
WITH done AS (
    DELETE FROM accounts.push_due WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 AND version = $4 AND NOT $5
    RETURNING 1
)
UPDATE accounts.push_due SET due_at = now(), claimed = false, attempts = 0, badge = badge AND version <> $4
WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 AND NOT EXISTS (SELECT FROM done)
"""

_FINISH_MAIL = f"""
WITH mailed AS (
    UPDATE accounts.pushers SET mailed_at = now() WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 AND $5
), done AS (
    DELETE FROM accounts.push_due WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 AND version = $4 RETURNING 1
)
UPDATE accounts.push_due SET claimed = false, attempts = 0,
    due_at = now() + CASE WHEN $5 THEN interval '{MAIL_INTERVAL_SECONDS} seconds' ELSE interval '60 seconds' END
WHERE user_id = $1 AND app_id = $2 AND pushkey = $3 AND NOT EXISTS (SELECT FROM done)
"""  # noqa: S608  constant text

_RETRY = """
UPDATE accounts.push_due SET due_at = now() + make_interval(secs => $4), claimed = false,
    attempts = attempts + 1
WHERE user_id = $1 AND app_id = $2 AND pushkey = $3
"""

_DROP_OLD = """
DELETE FROM accounts.push_queue WHERE user_id = $1 AND app_id = $2 AND pushkey = $3
  AND (queued_at < now() - make_interval(secs => $4) OR queue_id < (
        SELECT queue_id FROM accounts.push_queue WHERE user_id = $1 AND app_id = $2 AND pushkey = $3
        ORDER BY queue_id DESC OFFSET $5 - 1 LIMIT 1))
"""

_DELETE_PUSHERS = """
DELETE FROM accounts.pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = ANY($3::text[])
"""

_LIST_MEMBERS = """
SELECT r.room_id, r.user_id, r.position, rules.rules
FROM accounts.user_rooms r LEFT JOIN accounts.push_rules rules ON rules.user_id = r.user_id
WHERE r.room_id = ANY($1::text[]) AND r.membership = 'join' {who}
  AND EXISTS (SELECT FROM accounts.pushers p WHERE p.user_id = r.user_id AND p.kind = ANY($2::text[]) AND p.enabled)
"""
_LIST_ALL_MEMBERS = _LIST_MEMBERS.format(who="")
_LIST_MEMBERS_WITH_RULES = _LIST_MEMBERS.format(who="AND rules.rules IS NOT NULL")

_LIST_USERS = """
SELECT u.user_id, rules.rules
FROM unnest($1::text[]) AS u (user_id) LEFT JOIN accounts.push_rules rules ON rules.user_id = u.user_id
WHERE EXISTS (SELECT FROM accounts.pushers p WHERE p.user_id = u.user_id AND p.kind = ANY($2::text[]) AND p.enabled)
"""

_LIST_IGNORED = """
SELECT user_id, content FROM accounts.account_data
WHERE user_id = ANY($1::text[]) AND room_id = '' AND type = 'm.ignored_user_list' AND content IS NOT NULL
"""


async def list_members_with_pushers(
    tx: Transaction, room_ids: Sequence[RoomId], *, with_rules_only: bool = False, kinds: Sequence[str] = KINDS
) -> list[PushedMember]:
    """Local members with pushers of these kinds; with `with_rules_only` those of them who have rules of their own."""
    query = _LIST_MEMBERS_WITH_RULES if with_rules_only else _LIST_ALL_MEMBERS
    return [PushedMember(*row) for row in await tx.fetch(query, list(room_ids), list(kinds))]


async def list_users_with_pushers(
    tx: Transaction, user_ids: Sequence[UserId], *, kinds: Sequence[str] = KINDS
) -> dict[UserId, bytes | None]:
    """Those of the users who have pushers, with their rules as stored."""
    return {UserId(row[0]): row[1] for row in await tx.fetch(_LIST_USERS, list(user_ids), list(kinds))}


async def list_ignored_lists(tx: Transaction, user_ids: Sequence[UserId]) -> dict[UserId, bytes]:
    """The content of m.ignored_user_list of those of the users who have one."""
    return {UserId(row[0]): row[1] for row in await tx.fetch(_LIST_IGNORED, list(user_ids))}


async def add_notices(
    tx: Transaction,
    notices: Sequence[Notice],
    *,
    jitter_seconds: float = 0.0,
    mail_delay_seconds: float = 0.0,
    kinds: Sequence[str] = KINDS,
) -> None:
    """Queue notifications for all pushers of their users; the same one a second time changes nothing."""
    if notices:
        columns = [list(column) for column in zip(*notices, strict=True)]
        await tx.execute(_ADD, *columns, jitter_seconds, mail_delay_seconds, list(kinds))


async def mark_badges_due(tx: Transaction, user_ids: Sequence[UserId]) -> None:
    """Let the gateways of these users' pushers be told the counts."""
    await tx.execute(_MARK_BADGES, list(user_ids))


async def take_due(tx: Transaction, limit: int) -> list[DuePusher]:
    """Pushers to be served now; nobody else gets them for CLAIM_SECONDS."""
    rows = await tx.fetch(_TAKE, limit, CLAIM_SECONDS)
    return [DuePusher(PusherKey(*row[:3]), *row[3:]) for row in rows]


async def list_queued(tx: Transaction, key: PusherKey, limit: int) -> list[Queued]:
    """The oldest notifications of a pusher."""
    return [Queued(*row) for row in await tx.fetch(_LIST_QUEUED, *key, limit)]


async def delete_queued(tx: Transaction, queue_ids: Sequence[int]) -> None:
    """These have been sent, or need not be."""
    await tx.execute(_DELETE_QUEUED, list(queue_ids))


async def finish(tx: Transaction, pusher: DuePusher, *, has_more: bool) -> None:
    """The pusher was served; if anything came meanwhile, or `has_more`, it is due again at once."""
    await tx.execute(_FINISH, *pusher.key, pusher.version, has_more)


async def finish_mail(tx: Transaction, pusher: DuePusher, *, mailed: bool) -> None:
    """The queue was looked through, and what was unread mailed; what came meanwhile waits for the next mail."""
    await tx.execute(_FINISH_MAIL, *pusher.key, pusher.version, mailed)


async def retry_later(tx: Transaction, pusher: DuePusher, seconds: float) -> None:
    """The gateway failed: try again after a while, without what is then too old or too much."""
    await tx.execute(_DROP_OLD, *pusher.key, MAX_AGE_SECONDS, MAX_QUEUED)
    await tx.execute(_RETRY, *pusher.key, seconds)


async def delete_rejected(tx: Transaction, key: PusherKey, pushkeys: Sequence[str]) -> None:
    """Delete pushers of the user's whose keys the gateway knows no longer, with all that is queued for them."""
    await tx.execute(_DELETE_PUSHERS, key.user_id, key.app_id, list(pushkeys))
