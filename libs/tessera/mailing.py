"""Sending mail through the operator's mail server.

Spec: none; Synapse's `email` says where the server is and how it is spoken to.
"""

import asyncio
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate

import aiosmtplib
import structlog

from tessera.clock import Clock
from tessera.config.accounts import Email
from tessera.http.errors import Unavailable
from tessera.ids import IdSource

SEND_SECONDS = 20.0
AT_ONCE = 4
MAX_WAITING = 100

log = structlog.get_logger(__name__)


class MailNotSent(Exception):
    """The mail server was not reached or did not take the mail."""


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail to one address, as plain text and as HTML."""

    to: str
    subject: str
    text: str
    html: str


class Mailer:
    """Sends mails, a few at a time.

    Args:
        host: this server's name, for the mails' IDs.
    """

    def __init__(self, settings: Email, host: str, clock: Clock, ids: IdSource) -> None:
        self._settings = settings
        self._host = host
        self._clock = clock
        self._ids = ids
        self._places = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def send(self, mail: Mail) -> None:
        """Return when the mail server has taken the mail.

        Raises:
            MailNotSent
            Unavailable: too many mails wait already.
        """
        if self._waiting >= MAX_WAITING:
            raise Unavailable("Too many mails are to be sent")
        self._waiting += 1
        try:
            async with self._places:
                await self._deliver(self._message(mail))
        finally:
            self._waiting -= 1

    def _message(self, mail: Mail) -> EmailMessage:
        message = EmailMessage()
        try:
            message["From"] = self._settings.sender
            message["To"] = mail.to
            message["Subject"] = mail.subject
        except ValueError as error:  # a line break in an address, say
            raise MailNotSent("the address cannot be written to") from error
        message["Date"] = formatdate(self._clock.now_ms() / 1000)
        message["Message-ID"] = f"<{self._ids.token(18)}@{self._host.partition(':')[0]}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(mail.text)
        message.add_alternative(mail.html, subtype="html")
        return message

    async def _deliver(self, message: EmailMessage) -> None:
        settings = self._settings
        password = settings.smtp_pass
        # None: TLS if the server offers it.
        start_tls = False if settings.force_tls or not settings.enable_tls else settings.require_transport_security
        try:
            await aiosmtplib.send(
                message,
                hostname=settings.smtp_host,
                port=settings.port,
                username=settings.smtp_user,
                password=None if password is None else password.get_secret_value(),
                use_tls=settings.force_tls,
                start_tls=start_tls or (None if settings.enable_tls and not settings.force_tls else False),
                timeout=SEND_SECONDS,
            )
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            log.warning("mail not sent", reason=type(error).__name__)
            raise MailNotSent(type(error).__name__) from error
