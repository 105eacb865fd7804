"""Whom an event notifies: the push rules of the local users who have pushers.

Spec: C-S API §Push Rules; DESIGN.md section 5.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from matrixcore.identifiers import RoomId, ServerName, UserId, server_of
from matrixcore.push_evaluation import PushEvaluator, PushOutcome, compile_ruleset, default_outcome
from matrixcore.push_rules import from_stored_form, merged_ruleset
from matrixcore.visibility import Membership, parse_membership
from tessera.records import EventBody, LogRecord, OrderKey
from tessera.storage.push_queue import Notice, PushedMember
from tessera.storage.room_reads.many_rooms import Place
from tessera.unread import own_evaluator, push_room

KEPT_EVALUATORS = 10_000
NOBODY = UserId("@_:_")  # stands for whoever has the default rules


@dataclass(frozen=True, slots=True)
class Subject:
    """An event to be judged."""

    record: LogRecord
    body: EventBody
    content: Mapping[str, Any]

    @property
    def place(self) -> Place:
        """Where it stands in its room."""
        return Place(self.record.room_id, OrderKey(self.record.position))

    @property
    def mentions_room(self) -> bool:
        """Whether it says so; whether its sender may is another question."""
        mentions = self.content.get("m.mentions")
        return isinstance(mentions, Mapping) and mentions.get("room") is True

    def fields(self) -> dict[str, Any]:
        """The event as rules see it."""
        fields = {
            "event_id": self.body.event_id,
            "room_id": self.record.room_id,
            "type": self.body.type,
            "sender": self.body.sender,
            "origin_server_ts": self.body.origin_server_ts,
            "content": self.content,
        }
        return fields if self.body.state_key is None else fields | {"state_key": self.body.state_key}


class Asked(NamedTuple):
    """A user for whom an event is to be judged."""

    subject: Subject
    member: PushedMember


def subjects_of(records: Sequence[LogRecord]) -> list[Subject]:
    """The events among the records."""
    found = []
    for record in records:
        if isinstance(record.body, EventBody):
            found.append(Subject(record, record.body, orjson.loads(record.body.client + b"}")["content"]))
    return found


def may_notify_by_default(subject: Subject) -> bool:
    """Whether anybody with the default rules may be notified: for nearly all state and reactions nobody is."""
    body = subject.body
    outcome = default_outcome(body.type, body.state_key, body.sender, subject.content, body.joined_count, lambda: True)
    return outcome.notify or bool(outcome.mentioned_user_ids) or outcome.invitee is not None


def invitee_of(subject: Subject, server_name: ServerName) -> UserId | None:
    """The local user whom the event invites."""
    body = subject.body
    if body.membership != Membership.INVITE or body.state_key is None:
        return None
    user_id = UserId(body.state_key)
    return user_id if server_of(user_id) == server_name else None


def pair_up(
    subjects: Iterable[Subject],
    members: Iterable[PushedMember],
    invited: Mapping[UserId, bytes | None],
    server_name: ServerName,
) -> list[Asked]:
    """Each event with the users for whom it is to be judged, its sender not among them."""
    by_room: dict[RoomId, list[PushedMember]] = defaultdict(list)
    for member in members:
        by_room[member.room_id].append(member)
    asked = []
    for subject in subjects:
        room_id, sender = subject.record.room_id, subject.body.sender
        asked += [Asked(subject, member) for member in by_room[room_id] if member.user_id != sender]
        invitee = invitee_of(subject, server_name)
        if invitee is not None and invitee in invited and invitee != sender:
            asked.append(Asked(subject, PushedMember(room_id, invitee, subject.record.position, invited[invitee])))
    return asked


@lru_cache(maxsize=KEPT_EVALUATORS)
def _evaluator(user_id: UserId, own_rules: bytes | None) -> PushEvaluator:
    own = own_evaluator(user_id, own_rules)
    return own or compile_ruleset(user_id, merged_ruleset(user_id, from_stored_form({})))


def judge(
    asked: Asked, display_name: str | None, *, mentions_room: bool, by_default: PushOutcome | None
) -> PushOutcome:
    """What an event means to a user.

    Args:
        display_name: the user's in the room, for rules that look for it.
        mentions_room: the event does, and its sender may.
        by_default: what everybody with the default rules gets who is not named; None if that is not known.
    """
    subject, member = asked
    if by_default is not None and member.own_rules is None and not _names(subject, member.user_id):
        return by_default
    evaluator = _evaluator(member.user_id, member.own_rules)
    room = push_room(subject.body.joined_count, room_mention=mentions_room)
    return evaluator.evaluate(subject.fields(), room, display_name)


def outcome_by_default(subject: Subject, *, mentions_room: bool) -> PushOutcome:
    """What everybody with the default rules gets who is not named in the event."""
    room = push_room(subject.body.joined_count, room_mention=mentions_room)
    return _evaluator(NOBODY, None).evaluate(subject.fields(), room)


def _names(subject: Subject, user_id: UserId) -> bool:
    mentions = subject.content.get("m.mentions")
    users = mentions.get("user_ids") if isinstance(mentions, Mapping) else None
    return subject.body.state_key == user_id or (isinstance(users, list) and user_id in users)


def notice_of(asked: Asked, outcome: PushOutcome) -> Notice:
    """The notification to be queued."""
    record, body = asked.subject.record, asked.subject.body
    return Notice(asked.member.user_id, record.room_id, body.event_id, orjson.dumps(dict(outcome.tweaks)))


def was_joined(asked: Asked, member_pdu: bytes | None) -> bool:
    """Whether a user whose membership changed after the event was joined at it."""
    if asked.member.position <= asked.subject.record.position:
        return True
    content = {} if member_pdu is None else orjson.loads(member_pdu)["content"]
    return parse_membership(content.get("membership")) is Membership.JOIN


def display_name_of(member_pdu: bytes | None) -> str | None:
    """The display name that a member event gives."""
    name = None if member_pdu is None else orjson.loads(member_pdu)["content"].get("displayname")
    return name if isinstance(name, str) else None


def ignores(ignored_list: bytes | None, sender: UserId) -> bool:
    """Whether a user with this m.ignored_user_list ignores the sender."""
    users = None if ignored_list is None else orjson.loads(ignored_list).get("ignored_users")
    return isinstance(users, Mapping) and sender in users
