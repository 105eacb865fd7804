"""Two people walk through what mautrix-python offers; what it has no call for goes through its HTTP layer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from mautrix.api import Method, Path
from mautrix.client import Client
from mautrix.types import (
    EventType,
    Membership,
    MessageEvent,
    MessageType,
    PaginationDirection,
    PresenceState,
    RoomCreatePreset,
    RoomDirectoryVisibility,
    StateEvent,
    TextMessageEventContent,
)

from tests.fixtures.server_process import ServerProcess

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
WAIT_SECONDS = 30


class Person:
    """A client that syncs, and what it has heard."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.events: list[Any] = []
        self._changed = asyncio.Event()
        client.add_event_handler(EventType.ALL, self._note)

    async def _note(self, event: Any) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, condition: Callable[[Any], bool]) -> Any:
        """The first event for which it holds."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                for event in self.events:
                    if condition(event):
                        return event
                self._changed.clear()
                await self._changed.wait()

    async def call(self, method: Method, path: Any, content: Any = None, **query: Any) -> Any:
        """An endpoint that the library has no function for."""
        return await self.client.api.request(method, path, content=content, query_params=query or None)


@asynccontextmanager
async def _person(server: ServerProcess, name: str) -> AsyncIterator[Person]:
    async with aiohttp.ClientSession() as http:
        body = {"username": name, "password": "a secret", "auth": {"type": "m.login.dummy"}, "inhibit_login": True}
        async with http.post(f"{server.base_url}/_matrix/client/v3/register", json=body) as reply:
            assert reply.status == 200
        client = Client(base_url=server.base_url, client_session=http)
        await client.login(identifier=name, password="a secret", device_name="mautrix")
        person = Person(client)
        syncing = client.start(None)
        try:
            yield person
        finally:
            client.stop()
            await asyncio.gather(syncing, return_exceptions=True)


def _message(body: str) -> Callable[[Any], bool]:
    return lambda event: isinstance(event, MessageEvent) and getattr(event.content, "body", None) == body


def _membership(user_id: str, membership: Membership) -> Callable[[Any], bool]:
    def holds(event: Any) -> bool:
        is_member = isinstance(event, StateEvent) and event.type == EventType.ROOM_MEMBER
        return is_member and event.state_key == user_id and event.content.membership == membership

    return holds


async def test_a_walk(server: ServerProcess, unique: str) -> None:
    async with _person(server, f"anna{unique}") as anna, _person(server, f"ben{unique}") as ben:
        room_id = await _talk(anna, ben)
        await _read_back(anna, room_id)
        await _own_things(anna, ben, room_id)
        await _directory_and_space(anna, ben, room_id, unique)
        await _knock(anna, ben)
        await _upgrade(anna, ben, room_id)
        anna.client.stop()
        token = anna.client.api.token
        await anna.client.logout()
        anna.client.api.token = token
        assert await _refused(anna.client.whoami()) == "M_UNKNOWN_TOKEN"


async def _talk(anna: Person, ben: Person) -> str:
    room_id = await anna.client.create_room(name="A walk", preset=RoomCreatePreset.PRIVATE, invitees=[ben.client.mxid])
    await ben.until(_membership(ben.client.mxid, Membership.INVITE))
    await ben.client.join_room(room_id)
    await anna.until(_membership(ben.client.mxid, Membership.JOIN))
    first = await anna.client.send_text(room_id, "the apple falls")
    heard = await ben.until(_message("the apple falls"))
    assert heard.event_id == first
    await ben.client.send_receipt(room_id, first)
    await ben.client.react(room_id, first, "🍎")
    reaction = await anna.until(lambda event: event.type == EventType.REACTION)
    assert reaction.content.relates_to.key == "🍎"
    edit = TextMessageEventContent(msgtype=MessageType.TEXT, body="the pear falls")
    edit.set_edit(first)
    await anna.client.send_message(room_id, edit)
    await ben.until(lambda event: isinstance(event, MessageEvent) and event.content.get_edit() == first)
    answer = {"msgtype": "m.text", "body": "in a thread", "m.relates_to": {"rel_type": "m.thread", "event_id": first}}
    await ben.client.send_message_event(room_id, EventType.ROOM_MESSAGE, answer)
    await anna.until(_message("in a thread"))
    threads = await anna.call(Method.GET, Path.v1.rooms[room_id].threads)
    assert [event["event_id"] for event in threads["chunk"]] == [first]
    assert threads["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["count"] == 1
    relations = await anna.call(Method.GET, Path.v1.rooms[room_id].relations[first])
    assert len(relations["chunk"]) == 3
    gone = await anna.client.send_text(room_id, "to be redacted")
    await anna.client.redact(room_id, gone, reason="a slip")
    await ben.until(lambda event: event.type == EventType.ROOM_REDACTION)
    return str(room_id)


async def _read_back(anna: Person, room_id: str) -> None:
    page = await anna.client.get_messages(room_id, PaginationDirection.BACKWARD, limit=100)
    assert page.events[-1].type == EventType.ROOM_CREATE
    search = {"search_categories": {"room_events": {"search_term": "apple", "order_by": "recent"}}}
    found = (await anna.call(Method.POST, Path.v3.search, search))["search_categories"]["room_events"]
    assert found["count"] == 1
    assert found["results"][0]["result"]["content"]["body"] == "the apple falls"
    event_id = found["results"][0]["result"]["event_id"]
    context = await anna.client.get_event_context(room_id, event_id)
    assert context.event.event_id == event_id
    assert len(await anna.client.get_joined_members(room_id)) == 2


async def _own_things(anna: Person, ben: Person, room_id: str) -> None:
    await anna.client.set_displayname("Anna")
    renamed = await ben.until(lambda event: event.type == EventType.ROOM_MEMBER and event.content.displayname == "Anna")
    assert renamed.sender == anna.client.mxid
    assert (await ben.client.get_profile(anna.client.mxid)).displayname == "Anna"
    await anna.client.set_presence(PresenceState.ONLINE, status="walking")
    assert (await ben.client.get_presence(anna.client.mxid)).status_msg == "walking"
    await anna.client.set_account_data("org.example.walk", {"steps": 7})
    assert await anna.client.get_account_data("org.example.walk") == {"steps": 7}
    await anna.client.set_room_tag(room_id, "m.favourite", {"order": 0.5})
    assert "m.favourite" in (await anna.client.get_room_tags(room_id)).tags
    uri = await anna.client.upload_media(b"a picture", mime_type="text/plain", filename="picture.txt")
    assert await ben.client.download_media(uri) == b"a picture"
    await anna.client.send_text(room_id, f"hello {ben.client.mxid}")
    await ben.until(_message(f"hello {ben.client.mxid}"))
    notified = await ben.call(Method.GET, Path.v3.notifications)
    assert any(one["event"]["content"].get("body") == f"hello {ben.client.mxid}" for one in notified["notifications"])


async def _directory_and_space(anna: Person, ben: Person, room_id: str, unique: str) -> None:
    public = await anna.client.create_room(
        name=f"Market {unique}",
        alias_localpart=f"market{unique}",
        preset=RoomCreatePreset.PUBLIC,
        visibility=RoomDirectoryVisibility.PUBLIC,
    )
    listed = await ben.client.get_room_directory(search_query=f"market {unique}")
    assert [room.room_id for room in listed.chunk] == [public]
    space = await anna.client.create_room(
        name="A space", preset=RoomCreatePreset.PUBLIC, creation_content={"type": "m.space"}
    )
    for child in (public, room_id):
        await anna.client.send_state_event(space, EventType.SPACE_CHILD, {"via": [_server_of(anna)]}, state_key=child)
    await ben.client.join_room(space)
    tree = await ben.call(Method.GET, Path.v1.rooms[space].hierarchy)
    assert {room["room_id"] for room in tree["rooms"]} == {space, public, room_id}
    alias = f"#market{unique}:{_server_of(anna)}"
    assert (await ben.client.resolve_room_alias(alias)).room_id == public
    await ben.client.join_room(alias)
    await ben.client.leave_room(public)
    await ben.client.forget_room(public)


async def _knock(anna: Person, ben: Person) -> None:
    rules = [{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}]
    closed = await anna.client.create_room(name="Knock", initial_state=rules)
    await ben.client.knock_room(closed, reason="let me in")
    await anna.until(_membership(ben.client.mxid, Membership.KNOCK))
    await anna.client.invite_user(closed, ben.client.mxid)
    await ben.client.join_room(closed)
    await anna.client.kick_user(closed, ben.client.mxid, reason="enough")
    await anna.client.ban_user(closed, ben.client.mxid)
    assert await _refused(ben.client.join_room_by_id(closed)) == "M_FORBIDDEN"


async def _upgrade(anna: Person, ben: Person, room_id: str) -> None:
    upgraded = await anna.call(Method.POST, Path.v3.rooms[room_id].upgrade, {"new_version": "12"})
    new = upgraded["replacement_room"]
    tombstone = await ben.until(lambda event: event.type == EventType.ROOM_TOMBSTONE)
    assert tombstone.content.replacement_room == new
    create = await anna.call(Method.GET, Path.v3.rooms[new].state["m.room.create"])
    assert create["predecessor"]["room_id"] == room_id


def _server_of(person: Person) -> str:
    return str(person.client.mxid).partition(":")[2]


async def _refused(work: Awaitable[Any]) -> str:
    try:
        await work
    except Exception as error:
        return str(getattr(error, "errcode", error))
    raise AssertionError("it was not refused")
