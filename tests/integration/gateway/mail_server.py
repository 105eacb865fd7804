"""A real SMTP server that keeps what it is given."""

import re
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any
from urllib.parse import urlsplit

from aiosmtpd.smtp import SMTP


class MailBox:
    """The mails, in the order in which they came. `port` is where the server listens."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.port = 0
        self.is_full = False

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        if self.is_full:
            return "452 no room"
        message = message_from_bytes(envelope.content, policy=default)
        assert isinstance(message, EmailMessage)
        assert list(envelope.rcpt_tos) == [message["To"]]
        self.mails.append(message)
        return "250 taken"

    def link(self) -> str:
        """The path and query of the link in the newest mail."""
        body = self.mails[-1].get_body(("plain",))
        assert body is not None
        found = re.search(r"https?://\S+", body.get_content())
        assert found is not None
        parts = urlsplit(found[0])
        return f"{parts.path}?{parts.query}"
