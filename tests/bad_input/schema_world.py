"""The server that the requests go to, and what is there to be named in them."""

import asyncio
import hashlib
import hmac
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import yaml

from matrixcore.identifiers import RoomId
from tessera.config import Settings
from tests.bad_input.schema_operations import Operation
from tests.fixtures.federated_server import FederatedServer
from tests.fixtures.peer_certificates import PeerAuthority
from tests.fixtures.server_process import UNLIMITED
from tests.fixtures.small_peer import SmallPeer, small_peer

PASSWORD = "correct horse"
API = "/_matrix/client/v3"
_SECRET = "registration-secret"
LONGEST_WAIT_MS = 500
_LARGEST = 2**53 - 1
_WAITS = ("timeout", "timeout_ms")


@dataclass
class World:
    """A server, a user with a room and a message, an administrator, and a server of other users.

    Attributes:
        tokens: of each caller.
        names: what stands for a parameter or a field of that name when it shall be right.
    """

    server: FederatedServer
    peer: SmallPeer
    authority: PeerAuthority
    http: httpx.Client
    tokens: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    _shared: dict[str, str] = field(default_factory=dict)
    _user_id: str = ""

    def renew(self, operation: Operation | None = None) -> None:
        """Give back what requests have destroyed: the sessions, the room, the message.

        A peer's requests are about the first room, which it is in, and about its own user; an administrator's are
        about another user, who is not needed any more.
        """
        if operation is not None and operation.api == "server-server":
            self.names |= self._shared
            return
        is_moderation = operation is not None and "/admin/" in operation.path
        for name in ("user", "administrator"):
            if self._get("/account/whoami", name).status_code != 200:
                self._log_in(name)
        room = self._post("/createRoom", {"preset": "public_chat", "room_version": "11"})["room_id"]
        event = self._put(f"/rooms/{quote(room)}/send/m.room.message/first", {"msgtype": "m.text", "body": "hello"})
        backup = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "a"}}
        self.names |= {
            "user_id": f"@other:{self.server.server_name}" if is_moderation else self._user_id,
            "room_id": room,
            "room_id_or_alias": room,
            "event_id": event["event_id"],
            "version": self._post("/room_keys/version", backup)["version"],
        }

    def fill(self, value: Any, dice: random.Random, name: str = "") -> Any:
        """The value with most of what is named like something of this world put right, and no long waits."""
        if isinstance(value, dict):
            return {key: self.fill(item, dice, key) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item, dice, name) for item in value]
        if name in _WAITS and not isinstance(value, bool) and _is_long(value):
            return LONGEST_WAIT_MS
        if isinstance(value, str) and name in self.names and dice.random() < 0.8:
            return self.names[name]
        return value

    def fill_path(self, parameters: Mapping[str, Any], dice: random.Random) -> dict[str, Any]:
        """Path parameters, most of them right; each already quoted."""
        return {
            name: quote(self.names[_snake(name)], safe="")
            if _snake(name) in self.names and dice.random() < 0.8
            else given
            for name, given in parameters.items()
        }

    def enter(self) -> None:
        """Make the accounts, and what their names stand for."""
        for name in ("user", "administrator", "other"):
            self._register(name)
        who = self._get("/account/whoami", "user").json()
        headers = {"Content-Type": "image/png"}
        media = self._request("POST", "/_matrix/media/v3/upload", content=b"\x89PNG", headers=headers)["content_uri"]
        described = {"room": {"timeline": {"limit": 5}}}
        self.names = {
            "user_id": who["user_id"],
            "device_id": who["device_id"],
            "server_name": self.server.server_name,
            "media_id": media.rpartition("/")[2],
            "filter_id": self._post(f"/user/{quote(who['user_id'])}/filter", described)["filter_id"],
            "room_alias": f"#alias:{self.server.server_name}",
            "event_type": "m.room.message",
            "type": "m.room.message",
            "state_key": "",
            "rel_type": "m.thread",
            "receipt_type": "m.read",
            "kind": "override",
            "rule_id": ".m.rule.master",
            "session_id": "a",
            "key_name": "displayname",
            "query_type": "profile",
            "tag": "u.work",
            "membership": "join",
            "dir": "b",
        }
        self._user_id = who["user_id"]
        self.renew()
        self._shared = {
            "user_id": f"@sender:{self.peer.name}",
            "room_id": self.names["room_id"],
            "event_id": self.names["event_id"],
        }

    def _register(self, name: str) -> None:
        if name == "administrator":
            self._register_administrator(name)
        else:
            body = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
            self.tokens[name] = self._post("/register", body, None)["access_token"]

    def _register_administrator(self, name: str) -> None:
        path = "/_synapse/admin/v1/register"
        nonce = self.http.get(path).raise_for_status().json()["nonce"]
        text = "\0".join((nonce, name, PASSWORD, "admin"))
        mac = hmac.new(_SECRET.encode(), text.encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": name, "password": PASSWORD, "admin": True, "mac": mac}
        self.tokens[name] = self.http.post(path, json=body).raise_for_status().json()["access_token"]

    def _log_in(self, name: str) -> None:
        body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": name}, "password": PASSWORD}
        if name == "user":
            body["device_id"] = self.names["device_id"]
        self.tokens[name] = self._post("/login", body, None)["access_token"]

    def _get(self, path: str, caller: str) -> httpx.Response:
        return self.http.get(API + path, headers={"Authorization": f"Bearer {self.tokens[caller]}"})

    def _post(self, path: str, body: Any, caller: str | None = "user") -> Any:
        return self._request("POST", API + path, caller, json=body)

    def _put(self, path: str, body: Any) -> Any:
        return self._request("PUT", API + path, json=body)

    def _request(self, method: str, url: str, caller: str | None = "user", **more: Any) -> Any:
        headers = {**more.pop("headers", {})}
        if caller is not None:
            headers["Authorization"] = f"Bearer {self.tokens[caller]}"
        return self.http.request(method, url, headers=headers, **more).raise_for_status().json()


@asynccontextmanager
async def running_world(folder: Path) -> AsyncIterator[World]:
    """A server process with its database in the folder, and a peer that shares the user's first room."""
    authority = PeerAuthority(folder)
    server = FederatedServer(folder, authority, **_settings())
    await server.start()
    try:
        async with small_peer(authority, server.server_name) as peer:
            with httpx.Client(base_url=server.base_url, timeout=10) as http:
                world = World(server, peer, authority, http)
                await asyncio.to_thread(world.enter)
                await peer.join(RoomId(world.names["room_id"]))
                yield world
    finally:
        await server.stop()


def _settings() -> dict[str, Any]:
    """Everything on, nothing limited: a limit would hide what lies behind it."""
    made: dict[str, Any] = {
        "turn_uris": ["turn:turn.example"],
        "turn_shared_secret": "x",
        "url_preview_enabled": True,
        "url_preview_ip_range_blacklist": ["0.0.0.0/0", "::/0"],
        "allow_guest_access": True,
    }
    for path in Settings.for_tests().rate_limits():
        place = made
        *above, last = path.split(".")
        if above[:1] == ["tessera"] or above[:1] == ["rc_federation"]:
            continue
        for key in above:
            place = place.setdefault(key, {})
        place[last] = UNLIMITED
    return yaml.safe_load(yaml.safe_dump(made))


def without_fractions(value: Any) -> Any:
    """The value with whole numbers that events may hold: JSON Schema's `number` says more than Matrix does."""
    if isinstance(value, dict):
        return {key: without_fractions(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_fractions(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(max(min(value, _LARGEST), -_LARGEST))
    return value


def _is_long(value: Any) -> bool:
    try:
        return float(value) > LONGEST_WAIT_MS
    except (TypeError, ValueError, OverflowError):
        return False


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
