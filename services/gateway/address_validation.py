"""Proving that an e-mail address is somebody's: a mail with a link, the page it leads to, and the proof.

A proof is good for the purpose that it was begun for only, so that nobody who clicks on one link gives away more.

Spec: C-S API §Email-based (identity / homeserver); Identity Service API §Email associations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from services.gateway.pages import render
from services.gateway.threepid_addresses import (
    EMAIL_MEDIUM,
    canonical_email,
    client_secret_of,
    require_allowed,
    required_text,
)
from tessera.clock import Clock
from tessera.config import Settings
from tessera.config.accounts import Email
from tessera.http.errors import BadJson, InvalidParam, MatrixError, MissingParam, NotFound
from tessera.http.limits import RateLimits
from tessera.ids import IdSource
from tessera.mailing import Mail, Mailer, MailNotSent
from tessera.storage import threepids
from tessera.storage.database import Database
from tessera.storage.threepids import Validation, hash_validation_token

REGISTER = "register"
PASSWORD_RESET = "password"  # noqa: S105  a purpose
ADD = "add"

VALIDATION_PATH = "_matrix/client/unstable/validate/email/submit_token"
MAX_LINK_LENGTH = 2_000
MAX_ATTEMPT = 2**31 - 1

# Purpose -> Synapse's name of the subject, the subject, what the mail says, what its button does.
_MAILS = {
    REGISTER: (
        "email_validation",
        "[%(server_name)s] Validate your email",
        "Somebody, hopefully you, wants to register an account with this address.",
        "Confirm the address",
    ),
    ADD: (
        "email_validation",
        "[%(server_name)s] Validate your email",
        "Somebody, hopefully you, wants to add this address to an account.",
        "Confirm the address",
    ),
    PASSWORD_RESET: (
        "password_reset",
        "[%(server_name)s] Password reset",
        "Somebody, hopefully you, wants a new password for the account with this address.",
        "Allow a new password",
    ),
}
_WARNING = "If it was not you, do nothing: nothing happens unless the link is opened."


@dataclass(frozen=True, slots=True)
class Proven:
    """A proven address, and the validation that proved it."""

    session_id: str
    medium: str
    address: str
    validated_ts: int


@dataclass(frozen=True, slots=True)
class AddressValidation:
    """Sends the mails and keeps the proofs; built once. Without `mailer` no address can be proven here."""

    settings: Settings
    accounts: Database
    clock: Clock
    ids: IdSource
    limits: RateLimits
    mailer: Mailer | None

    async def request_token(self, purpose: str, body: Mapping[str, Any], client_address: str) -> str:
        """Begin a validation for a client, or go on with it: its ID. A mail goes out if the attempt is a new one.

        Raises:
            MatrixError: M_THREEPID_MEDIUM_NOT_SUPPORTED, M_THREEPID_DENIED, M_THREEPID_IN_USE, M_THREEPID_NOT_FOUND.
            InvalidParam, MissingParam, BadJson, LimitExceeded
        """
        secret = client_secret_of(body)
        address = canonical_email(required_text(body, "email"))
        attempt = _attempt_of(body)
        next_link = self._next_link_of(body)
        if self.mailer is None or self.settings.email is None:
            raise not_supported("e-mail addresses")
        require_allowed(self.settings, EMAIL_MEDIUM, address)
        self.limits.check("rc_3pid_validation", client_address)
        self.limits.check("rc_3pid_validation", address)
        if not await self._is_welcome(purpose, address):
            return self.ids.session_id()
        token = self.ids.token(24)
        validation = Validation(
            self.ids.session_id(),
            purpose,
            EMAIL_MEDIUM,
            address,
            secret,
            next_link,
            [hash_validation_token(token)],
            None,
        )
        now_ms = self.clock.now_ms()
        async with self.accounts.transaction() as tx:
            session_id, is_due = await threepids.begin_validation(
                tx,
                validation,
                attempt,
                expires_ts=now_ms + self.settings.email.validation_token_lifetime,
                now_ms=now_ms,
            )
        if is_due:
            await self._send(self.mailer, self.settings.email, validation, session_id, token)
        return session_id

    async def find_proof(self, purpose: str, session_id: str, client_secret: str) -> Proven | None:
        """The address that a validation has proven for a purpose."""
        async with self.accounts.reading() as tx:
            found = await threepids.find_validation(tx, session_id, client_secret, now_ms=self.clock.now_ms())
        if found is None or found.purpose != purpose or found.validated_ts is None:
            return None
        return Proven(session_id, found.medium, found.address, found.validated_ts)

    async def find_by_token(self, session_id: str, client_secret: str, token: str) -> Validation:
        """The validation that a link belongs to. Raises NotFound."""
        async with self.accounts.reading() as tx:
            found = await threepids.find_validation(tx, session_id, client_secret, now_ms=self.clock.now_ms())
        if found is None or not found.is_token(token):
            raise NotFound("The link has expired or is not the one of the mail")
        return found

    async def submit_token(self, session_id: str, client_secret: str, token: str) -> Validation:
        """The link of a mail was opened and confirmed. Raises NotFound."""
        found = await self.find_by_token(session_id, client_secret, token)
        async with self.accounts.transaction() as tx:
            await threepids.set_validated(tx, session_id, now_ms=self.clock.now_ms())
        return found

    async def _is_welcome(self, purpose: str, address: str) -> bool:
        """Whether a mail may go to the address; False where the client is not to be told why not."""
        async with self.accounts.reading() as tx:
            owner = await threepids.find_owner(tx, EMAIL_MEDIUM, address)
        if (owner is not None) == (purpose == PASSWORD_RESET):
            return True
        if self.settings.request_token_inhibit_3pid_errors:
            return False
        if purpose == PASSWORD_RESET:
            raise MatrixError("No account has this address", errcode="M_THREEPID_NOT_FOUND", status=400)
        raise in_use()

    def _next_link_of(self, body: Mapping[str, Any]) -> str | None:
        """Where people are led once they have confirmed."""
        link = body.get("next_link")
        if link is None:
            return None
        if not isinstance(link, str):
            raise BadJson("next_link must be a string")
        try:
            parts = urlsplit(link)
            is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        except ValueError:
            is_web = False
        if not is_web or len(link) > MAX_LINK_LENGTH or not link.isprintable():
            raise InvalidParam("next_link must be a URL of the web")
        domains = self.settings.next_link_domain_whitelist
        if domains is not None and parts.hostname not in domains:
            raise InvalidParam("next_link leads to a domain that is not allowed")
        return link

    async def _send(self, mailer: Mailer, email: Email, validation: Validation, session_id: str, token: str) -> None:
        key, default, greeting, action = _MAILS[validation.purpose]
        server_name = self.settings.server_name
        subject = email.subjects.get(key, default)
        subject = subject.replace("%(server_name)s", server_name).replace("%(app)s", email.app_name)
        query = urlencode({"sid": session_id, "client_secret": validation.client_secret, "token": token})
        values = {
            "subject": subject,
            "greeting": greeting,
            "action": action,
            "warning": _WARNING,
            "link": f"{self.settings.client_baseurl}{VALIDATION_PATH}?{query}",
            "app": email.app_name,
            "server_name": server_name,
        }
        mail = Mail(
            validation.address, subject, render("mail_validation.txt", values), render("mail_validation.html", values)
        )
        try:
            await mailer.send(mail)
        except MailNotSent as error:
            raise MatrixError("The mail could not be sent", errcode="M_UNKNOWN", status=500) from error


def describe(purpose: str) -> tuple[str, str]:
    """What the page of a validation says, and what its button does."""
    _, _, text, action = _MAILS[purpose]
    return text, action


def not_supported(what: str) -> MatrixError:
    """The error for a kind of address that cannot be proven here."""
    return MatrixError(f"This server does not support {what}", errcode="M_THREEPID_MEDIUM_NOT_SUPPORTED", status=400)


def in_use() -> MatrixError:
    """The error for an address that is an account's."""
    return MatrixError("The address is in use already", errcode="M_THREEPID_IN_USE", status=400)


def _attempt_of(body: Mapping[str, Any]) -> int:
    attempt = body.get("send_attempt")
    if attempt is None:
        raise MissingParam("send_attempt is missing")
    if isinstance(attempt, bool) or not isinstance(attempt, int):
        raise BadJson("send_attempt must be an integer")
    if not 0 <= attempt <= MAX_ATTEMPT:
        raise InvalidParam("send_attempt is out of range")
    return attempt
