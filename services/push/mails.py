"""Mails about messages that nobody has read for a while.

A mail gathers what notifies its reader, room by room; what is read before it goes out is not in it.

Spec: C-S API POST /pushers/set, kind `email`; Synapse's `email.enable_notifs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import orjson
from jinja2 import Environment, FileSystemLoader, select_autoescape

from matrixcore.identifiers import RoomId, UserId
from services.push.evaluating import display_name_of
from tessera.config.accounts import Email
from tessera.mailing import Mail
from tessera.storage.push_details import PushDetails

MAX_ROOMS, MAX_LINES = 10, 5  # of a mail, of a room
MAX_TEXT_LENGTH = 300

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(["html"])
)


class SendsMail(Protocol):
    """Where mails go: `tessera.mailing.Mailer`."""

    async def send(self, mail: Mail) -> None:
        """Return when the mail server has taken the mail. Raises MailNotSent, Unavailable."""


@dataclass(frozen=True, slots=True)
class MailSettings:
    """How mails are made.

    Attributes:
        include_content: whether a mail says what was said.
        delay_seconds: that a message has to be read.
    """

    mailer: SendsMail
    email: Email
    include_content: bool

    @property
    def delay_seconds(self) -> float:
        return self.email.notif_delay_before_mail / 1_000


@dataclass(frozen=True, slots=True)
class _Line:
    sender: str
    text: str


@dataclass(slots=True)
class _Room:
    name: str
    link: str
    lines: list[_Line] = field(default_factory=list)


def compose_mail(settings: MailSettings, address: str, user_id: UserId, unread: Sequence[PushDetails]) -> Mail:
    """The mail about these events, of which there is at least one."""
    rooms: dict[RoomId, _Room] = {}
    more = False
    for event in unread:
        room = rooms.get(event.room_id)
        if room is None:
            if len(rooms) == MAX_ROOMS:
                more = True
                continue
            room = rooms[event.room_id] = _Room(_name_of(event), _link_to(settings.email, event.room_id))
        if len(room.lines) == MAX_LINES:
            more = True
            continue
        sender = display_name_of(event.sender_member) or event.sender
        room.lines.append(_Line(_short(sender), _short(_text_of(event, settings.include_content))))
    where = next(iter(rooms.values())).name if len(rooms) == 1 else f"{len(rooms)} rooms"
    # A name of a room may have line breaks, which a header may not.
    subject = _short(f"[{settings.email.app_name}] You have messages in {where}")
    values = {"subject": subject, "rooms": list(rooms.values()), "more": more, "user_id": user_id}
    text = _TEMPLATES.get_template("mail_messages.txt").render(values)
    return Mail(address, subject, text, _TEMPLATES.get_template("mail_messages.html").render(values))


def _text_of(event: PushDetails, include_content: bool) -> str:
    if event.type == "m.room.member":
        return "An invitation"
    if event.type == "m.room.encrypted":
        return "An encrypted message"
    body = orjson.loads(event.pdu)["content"].get("body") if include_content else None
    return body if isinstance(body, str) and body.strip() else "A message"


def _name_of(event: PushDetails) -> str:
    for pdu, key in ((event.name, "name"), (event.alias, "alias")):
        text = None if pdu is None else orjson.loads(pdu)["content"].get(key)
        if isinstance(text, str) and text.strip():
            return _short(text)
    return "a room without a name"


def _link_to(email: Email, room_id: RoomId) -> str:
    if email.client_base_url is None:
        return f"https://matrix.to/#/{quote(room_id, safe='!:')}"
    return f"{str(email.client_base_url).rstrip('/')}/#/room/{quote(room_id, safe='!:')}"


def _short(text: str) -> str:
    """One line of a bounded length, without characters that steer."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[:MAX_TEXT_LENGTH])
    return line if len(text) <= MAX_TEXT_LENGTH else f"{line}…"
