"""Application services: their registration files, and whose names are theirs.

Spec: Application Service API §Registration, §Identity assertion.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any

import yaml

from matrixcore.identifiers import InvalidIdentifier, ServerName, UserId, user_id_of

MAX_FILE_BYTES = 1 << 20
MIN_TOKEN_LENGTH = 8


class InvalidRegistration(ValueError):
    """A registration file that cannot be used; the text says why, and holds no token."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """Names that match a regular expression from their beginning on."""

    pattern: re.Pattern[str]
    exclusive: bool


@dataclass(frozen=True, slots=True)
class Registration:
    """An application service.

    Attributes:
        url: where it is told of events; None if it wants none.
        sender: the user that it acts as where it names none.
    """

    service_id: str
    url: str | None
    as_token: str = field(repr=False)
    hs_token: str = field(repr=False)
    sender: UserId
    users: tuple[Namespace, ...] = ()
    aliases: tuple[Namespace, ...] = ()
    rooms: tuple[Namespace, ...] = ()
    protocols: tuple[str, ...] = ()
    rate_limited: bool = True
    receive_ephemeral: bool = False
    has_older_ephemeral: bool = False  # it asked for it as the proposal MSC2409 did, and reads it where that had it

    def has_user(self, user_id: UserId) -> bool:
        """Whether the service may act as a user."""
        return user_id == self.sender or _matches(self.users, user_id)

    def has_alias(self, alias: str) -> bool:
        """Whether an alias is in a namespace of the service."""
        return _matches(self.aliases, alias)

    def has_room(self, room_id: str) -> bool:
        """Whether a room is in a namespace of the service."""
        return _matches(self.rooms, room_id)


class AppServices:
    """All application services of this server."""

    def __init__(self, registrations: Iterable[Registration] = ()) -> None:
        self.registrations = tuple(registrations)
        self._by_token = {sha256(one.as_token.encode()).digest(): one for one in self.registrations}

    def find_by_token(self, token: str) -> Registration | None:
        """Whose as_token it is."""
        # The look-up is by a digest, so that its time tells nothing of the tokens.
        found = self._by_token.get(sha256(token.encode("utf-8", "surrogatepass")).digest())
        return found if found is not None and compare_digest(found.as_token.encode(), token.encode()) else None

    def is_user_claimed(self, user_id: UserId) -> bool:
        """Whether nobody but a service may register this name."""
        return any(
            user_id == one.sender or _matches((space for space in one.users if space.exclusive), user_id)
            for one in self.registrations
        )

    def is_alias_claimed(self, alias: str, by: str | None) -> bool:
        """Whether the alias is another service's alone.

        Args:
            by: the ID of the service that asks; None for anybody else.
        """
        return any(
            one.service_id != by and _matches((space for space in one.aliases if space.exclusive), alias)
            for one in self.registrations
        )

    def find_by_id(self, service_id: str) -> Registration | None:
        """The service of an ID."""
        return next((one for one in self.registrations if one.service_id == service_id), None)

    @property
    def reachable(self) -> tuple[Registration, ...]:
        """Those that have a URL."""
        return tuple(one for one in self.registrations if one.url is not None)


def read_registrations(paths: Sequence[Path], server_name: ServerName) -> AppServices:
    """The services of some files.

    Raises:
        InvalidRegistration: a file cannot be read, makes no sense, or has the ID or token of another.
    """
    found: list[Registration] = []
    for path in paths:
        try:
            with path.open("rb") as file:
                data = yaml.safe_load(file.read(MAX_FILE_BYTES))
            registration = parse_registration(data, server_name)
        except OSError as error:
            raise InvalidRegistration(f"{path} cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidRegistration(f"{path} is not YAML") from error
        except InvalidRegistration as error:
            raise InvalidRegistration(f"{path}: {error}") from None
        for other in found:
            if other.service_id == registration.service_id or other.as_token == registration.as_token:
                raise InvalidRegistration(f"{path}: another service has the same id or as_token")
        found.append(registration)
    return AppServices(found)


def parse_registration(data: object, server_name: ServerName) -> Registration:
    """One file's content. Raises InvalidRegistration."""
    if not isinstance(data, Mapping):
        raise InvalidRegistration("must be a mapping")
    texts = {}
    for key in ("id", "as_token", "hs_token", "sender_localpart"):
        if not isinstance(data.get(key), str) or not data[key]:
            raise InvalidRegistration(f"{key} must be a string")
        texts[key] = data[key]
    for key in ("as_token", "hs_token"):
        if len(texts[key]) < MIN_TOKEN_LENGTH or not texts[key].isascii() or not texts[key].isprintable():
            raise InvalidRegistration(f"{key} must have {MIN_TOKEN_LENGTH} printable characters at least")
    url = data.get("url")
    if url is not None and not (isinstance(url, str) and url.startswith(("http://", "https://"))):
        raise InvalidRegistration("url must be a URL, or null")
    try:
        sender = user_id_of(texts["sender_localpart"], server_name)
    except InvalidIdentifier as error:
        raise InvalidRegistration(f"sender_localpart: {error}") from error
    spaces = data.get("namespaces") or {}
    if not isinstance(spaces, Mapping):
        raise InvalidRegistration("namespaces must be a mapping")
    protocols = data.get("protocols") or []
    if not isinstance(protocols, list) or not all(isinstance(one, str) for one in protocols):
        raise InvalidRegistration("protocols must be a list of strings")
    users, aliases, rooms = (_namespaces(spaces, name) for name in ("users", "aliases", "rooms"))
    older_ephemeral = data.get("de.sorunome.msc2409.push_ephemeral") is True
    return Registration(
        texts["id"],
        None if url is None else url.rstrip("/"),
        texts["as_token"],
        texts["hs_token"],
        sender,
        users,
        aliases,
        rooms,
        tuple(protocols),
        data.get("rate_limited") is not False,
        data.get("receive_ephemeral") is True or older_ephemeral,
        older_ephemeral,
    )


def _namespaces(spaces: Mapping[str, Any], name: str) -> tuple[Namespace, ...]:
    given = spaces.get(name) or []
    if not isinstance(given, list):
        raise InvalidRegistration(f"namespaces.{name} must be a list")
    found = []
    for one in given:
        if not isinstance(one, Mapping) or not isinstance(one.get("regex"), str):
            raise InvalidRegistration(f"namespaces.{name} must have a regex each")
        if not isinstance(one.get("exclusive"), bool):
            raise InvalidRegistration(f"namespaces.{name} must say whether they are exclusive")
        try:
            found.append(Namespace(re.compile(one["regex"]), one["exclusive"]))
        except re.error as error:
            raise InvalidRegistration(f"namespaces.{name}: {one['regex']} is no regular expression") from error
    return tuple(found)


def _matches(spaces: Iterable[Namespace], name: str) -> bool:
    return any(space.pattern.match(name) for space in spaces)
