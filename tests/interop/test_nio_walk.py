"""Two people walk through what matrix-nio offers, and are cut off in the middle by the end of the server.

nio has no functions for searching, setting account data and tags, leaving notes on whom one ignores, the list of
notifications, and the server's own upgrade: those go through the request function that all of its others use.
"""

import asyncio
import io
from typing import Any

import pytest
from nio import (
    AsyncClient,
    DeleteDevicesAuthResponse,
    InviteMemberEvent,
    MessageDirection,
    PushRulesEvent,
    ReactionEvent,
    RedactedEvent,
    RoomPreset,
    RoomVisibility,
    UnknownToDeviceEvent,
)
from nio.api import PushRuleKind, ReceiptType, RelationshipType, ResizingMethod, ThreadInclusion
from nio.event_builders import ToDeviceMessage
from nio.events.account_data import PushNotify, PushSetTweak
from PIL import Image

from tests.fixtures.server_process import ServerProcess
from tests.interop.nio_person import CONFIG, PASSWORD, Person, good, refused, syncing_person

pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


async def test_a_walk(server: ServerProcess, unique: str) -> None:
    """Each step asserts what the other side saw; nothing comes twice, before, through and after the SIGKILL."""
    async with syncing_person(server, f"anna{unique}") as anna, syncing_person(server, f"ben{unique}") as ben:
        room_id = await _meet(anna, ben)
        root = await _talk(anna, ben, room_id)
        await _threads(anna, ben, room_id, root)
        await _cut_off(server, anna, ben, room_id)
        await _notifications(anna, ben, room_id)
        await _read_back(anna, ben, room_id, root)
        await _own_things(anna, ben, room_id)
        await _spaces(anna, ben, room_id, unique)
        await _knock(anna, ben)
        await _upgrade(anna, ben, unique)
        await _devices(server, anna)


async def _meet(anna: Person, ben: Person) -> str:
    good(await anna.client.set_displayname("Anna"))
    created = await anna.client.room_create(name="A walk", topic="of two", is_direct=True, invite=[ben.user_id])
    room_id = str(good(created).room_id)
    await ben.until("the invite", lambda: ben.client.invited_rooms.get(room_id))
    invited = ben.client.invited_rooms[room_id]
    assert (invited.inviter, invited.display_name) == (anna.user_id, "A walk")
    event = next(event for room, event in ben.invites if room == room_id and isinstance(event, InviteMemberEvent))
    assert event.content["is_direct"] is True
    good(await ben.client.join(room_id))
    room = await ben.joined(room_id)
    assert (room.topic, room.join_rule, room.room_version) == ("of two", "invite", "12")
    assert room.user_name(anna.user_id) == "Anna"
    await anna.saw_member(room_id, ben.user_id, "join")
    assert anna.room(room_id).joined_count == 2
    return room_id


async def _talk(anna: Person, ben: Person, room_id: str) -> str:
    said = await anna.say(room_id, "the apple falls")
    await ben.heard(said)
    good(await ben.client.room_typing(room_id))
    await anna.until("typing", lambda: anna.room(room_id).typing_users == [ben.user_id])
    good(await ben.client.room_typing(room_id, False))
    await anna.until("no typing", lambda: not anna.room(room_id).typing_users)
    relates = {"rel_type": "m.annotation", "event_id": said, "key": "🍎"}
    reaction = await anna.heard(await ben.send(room_id, "m.reaction", {"m.relates_to": relates}))
    assert isinstance(reaction, ReactionEvent)
    assert (reaction.reacts_to, reaction.key) == (said, "🍎")
    replaces = {"rel_type": "m.replace", "event_id": said}
    new = {"msgtype": "m.text", "body": "the pear falls"}
    edit = await anna.say(room_id, "* the pear falls", **{"m.new_content": new, "m.relates_to": replaces})
    await ben.heard(edit)
    reply = await ben.say(room_id, "so it does", **{"m.relates_to": {"m.in_reply_to": {"event_id": said}}})
    await anna.heard(reply)
    edits = anna.client.room_get_event_relations(room_id, said, RelationshipType.replacement)
    assert [event.event_id async for event in edits] == [edit]
    found = [event async for event in ben.client.room_get_event_relations(room_id, said, limit=1)]
    assert [event.event_id for event in found] == [edit, reaction.event_id]
    original = good(await ben.client.room_get_event(room_id, said)).event
    assert original.source["unsigned"]["m.relations"]["m.replace"]["event_id"] == edit
    slip = await anna.say(room_id, "a slip")
    await ben.heard(slip)
    redaction = good(await anna.client.room_redact(room_id, slip, reason="a slip"))
    await ben.heard(redaction.event_id)
    assert isinstance(good(await ben.client.room_get_event(room_id, slip)).event, RedactedEvent)
    return said


async def _threads(anna: Person, ben: Person, room_id: str, root: str) -> None:
    """Threads have counts of their own, and receipts that touch no other."""
    second = await ben.say(room_id, "another root")
    for number in range(5):
        await anna.say(room_id, f"reply {number}", **_in_thread(root))
    last = await anna.say(room_id, "aside", **_in_thread(second))
    await ben.heard(last)
    await ben.until("five unread", lambda: _unread(ben, room_id, root) == 5 and _unread(ben, room_id, second) == 1)
    every = [event.event_id async for event in ben.client.room_get_threads(room_id, limit=1)]
    assert every == [second, root]
    replies = ben.client.room_get_event_relations(room_id, root, RelationshipType.thread, limit=2)
    assert [event.source["content"]["body"] async for event in replies] == [f"reply {n}" for n in reversed(range(5))]
    own = ben.client.room_get_threads(room_id, ThreadInclusion.participated)
    assert [event.event_id async for event in own] == [second]
    newest = next(event.event_id for _, event in reversed(ben.events) if "reply 4" in str(event.source["content"]))
    good(await ben.client.update_receipt_marker(room_id, newest, ReceiptType.read, thread_id=root))
    receipts = await anna.until("a receipt", lambda: anna.room(room_id).threaded_read_receipts.get(ben.user_id))
    assert receipts is not None
    assert receipts[root].event_id == newest
    await ben.until("read", lambda: not _unread(ben, room_id, root) and _unread(ben, room_id, second) == 1)
    good(await ben.client.update_receipt_marker(room_id, last, ReceiptType.read_private, thread_id=second))
    await ben.until("both read", lambda: not ben.threads[room_id])
    await anna.heard(await ben.say(room_id, "seen"))
    assert second not in anna.room(room_id).threaded_read_receipts[ben.user_id], "a private receipt was told"


def _in_thread(root: str) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}


def _unread(person: Person, room_id: str, root: str) -> int:
    counts = person.threads.get(room_id, {}).get(root)
    return (counts and counts.notification_count) or 0


async def _cut_off(server: ServerProcess, anna: Person, ben: Person, room_id: str) -> None:
    """The server is killed under both syncs and a message; all of them go on by themselves."""
    before = anna.bodies(room_id)
    content = {"msgtype": "m.text", "body": "while it is away"}

    async def send_until_accepted() -> None:
        while True:
            sent = await anna.client.room_send(room_id, "m.room.message", content, tx_id="away")
            if getattr(sent, "event_id", None):
                return
            await asyncio.sleep(0.1)

    await server.kill()
    async with asyncio.TaskGroup() as group:
        group.create_task(server.start())
        group.create_task(send_until_accepted())
    await ben.heard(await anna.say(room_id, "after it"))
    last = await ben.say(room_id, "I am here")
    for person in (anna, ben):
        await person.heard(last)
        assert person.bodies(room_id) == [*before, "while it is away", "after it", "I am here"]


async def _notifications(anna: Person, ben: Person, room_id: str) -> None:
    """Counts by intentional mention and by rules of one's own; the list of what notified."""
    good(await ben.client.room_read_markers(room_id, ben.events[-1][1].event_id, ben.events[-1][1].event_id))
    await ben.until("nothing unread", lambda: _counts(ben, room_id) == (0, 0))
    await ben.until("the marker", lambda: ben.room(room_id).fully_read_marker == ben.events[-1][1].event_id)
    await anna.say(room_id, "for nobody", **{"m.mentions": {}})
    await ben.until("one", lambda: _counts(ben, room_id) == (1, 0))
    mentioned = await anna.say(room_id, "for Ben", **{"m.mentions": {"user_ids": [ben.user_id]}})
    await ben.until("a mention", lambda: _counts(ben, room_id) == (2, 1))
    loud = [PushNotify(), PushSetTweak("highlight", True)]
    content = PushRuleKind.content
    good(await ben.client.set_pushrule("global", content, "plum", actions=loud, pattern="plum"))
    await ben.until("the rule", lambda: "plum" in _content_rules(ben))
    keyword = await anna.say(room_id, "a PLUM tree", **{"m.mentions": {}})
    await ben.until("a keyword", lambda: _counts(ben, room_id) == (3, 2))
    listed = (await ben.call("GET", "notifications?only=highlight"))["notifications"]
    assert [one["event"]["event_id"] for one in listed] == [keyword, mentioned]
    assert [one["read"] for one in listed] == [False, False]

    await _read_all(anna, ben, room_id)
    good(await ben.client.set_pushrule_actions("global", content, "plum", []))
    await anna.say(room_id, "a silent plum", **{"m.mentions": {}})
    await ben.heard(await anna.say(room_id, "for Ben again", **{"m.mentions": {"user_ids": [ben.user_id]}}))
    await ben.until("the mention alone", lambda: _counts(ben, room_id) == (1, 1))
    await _read_all(anna, ben, room_id)
    good(await ben.client.enable_pushrule("global", content, "plum", False))
    await ben.until("the rule's end", lambda: _content_rules(ben).get("plum") is False)
    await anna.say(room_id, "a plum like others", **{"m.mentions": {}})
    await ben.until("no keyword", lambda: _counts(ben, room_id) == (1, 0))
    good(await ben.client.delete_pushrule("global", content, "plum"))
    await ben.until("no rule", lambda: "plum" not in _content_rules(ben))


async def _read_all(anna: Person, ben: Person, room_id: str) -> None:
    last = await anna.say(room_id, "enough")
    await ben.heard(last)
    good(await ben.client.room_read_markers(room_id, last, read_event=last))
    await ben.until("all read", lambda: _counts(ben, room_id) == (0, 0))
    await anna.until("the receipt", lambda: anna.room(room_id).read_receipts[ben.user_id].event_id == last)


def _counts(person: Person, room_id: str) -> tuple[int, int]:
    room = person.room(room_id)
    return room.unread_notifications, room.unread_highlights


def _content_rules(person: Person) -> dict[str, bool]:
    """Which content rules are on, as /sync said last."""
    newest = [event for event in person.account_data if isinstance(event, PushRulesEvent)][-1]
    return {rule.id: rule.enabled for rule in newest.global_rules.content}


async def _read_back(anna: Person, ben: Person, room_id: str, root: str) -> None:
    """Searching, looking around an event, and paging back to the creation."""
    found = await _search(ben, "pear")
    assert found["count"] == 1
    assert found["results"][0]["result"]["content"]["m.new_content"]["body"] == "the pear falls"
    assert (await _search(ben, "apple"))["results"][0]["context"]["events_after"][0]["type"] == "m.reaction"
    around = good(await ben.client.room_context(room_id, root, limit=4))
    assert around.event.event_id == root
    assert len(around.events_before) == len(around.events_after) == 2
    assert {event.source["type"] for event in around.state} >= {"m.room.create", "m.room.topic"}
    start, chunk = "", []
    while start is not None:
        page = good(await ben.client.room_messages(room_id, start, limit=7, direction=MessageDirection.back))
        chunk += [event.event_id for event in page.chunk]
        start = page.end
    assert chunk[::-1][-len(ben.events) :] == [event.event_id for room, event in ben.events if room == room_id]
    assert len(chunk) == len(set(chunk))
    only = {"types": ["m.reaction"]}
    reactions = good(await anna.client.room_messages(room_id, limit=50, message_filter=only)).chunk
    assert [type(event) for event in reactions] == [ReactionEvent]


async def _search(person: Person, term: str) -> Any:
    """What has been found, once something is: the index follows the rooms."""
    where = {"search_term": term, "order_by": "recent", "event_context": {"before_limit": 1, "after_limit": 1}}
    for _ in range(200):
        found = await person.call("POST", "search", {"search_categories": {"room_events": where}})
        if found["search_categories"]["room_events"]["count"]:
            break
        await asyncio.sleep(0.1)
    return found["search_categories"]["room_events"]


async def _own_things(anna: Person, ben: Person, room_id: str) -> None:
    """Profiles, presence, pictures, account data, tags, and messages to devices."""
    picture = io.BytesIO()
    Image.new("RGB", (800, 400), "red").save(picture, "PNG")
    size = picture.tell()
    assert good(await anna.client.content_repository_config()).upload_size > size
    picture.seek(0)
    uploaded, _ = await anna.client.upload(picture, "image/png", "red.png", filesize=size)
    uri = good(uploaded).content_uri
    good(await anna.client.set_avatar(uri))
    await ben.until("the avatar", lambda: ben.room(room_id).avatar_url(anna.user_id) == uri)
    profile = good(await ben.client.get_profile(anna.user_id))
    assert (profile.displayname, profile.avatar_url) == ("Anna", uri)
    downloaded = good(await ben.client.download(uri))
    assert (downloaded.body, downloaded.filename) == (picture.getvalue(), "red.png")
    server_name, media_id = uri.removeprefix("mxc://").split("/")
    small = good(await ben.client.thumbnail(server_name, media_id, 40, 40, ResizingMethod.scale))
    assert Image.open(io.BytesIO(small.body)).size == (320, 160)

    good(await anna.client.set_presence("unavailable", "walking"))
    seen = ben.room(room_id).users[anna.user_id]
    await ben.until("the presence", lambda: (seen.presence, seen.status_msg) == ("unavailable", "walking"))
    assert good(await ben.client.get_presence(anna.user_id)).status_msg == "walking"

    direct = {anna.user_id: [room_id]}
    await ben.call("PUT", f"user/{ben.user_id}/account_data/m.direct", direct)
    await ben.until("m.direct", lambda: _account_data(ben, "m.direct") == direct)
    assert good(await ben.client.list_direct_rooms()).rooms == direct
    await ben.call("PUT", f"user/{ben.user_id}/rooms/{room_id}/tags/m.favourite", {"order": 0.5})
    await ben.until("the tag", lambda: ben.room(room_id).tags == {"m.favourite": {"order": 0.5}})
    message = ToDeviceMessage("org.example.ping", ben.user_id, "*", {"steps": 7})
    good(await anna.client.to_device(message))
    await ben.until("the ping", lambda: ben.to_device)
    assert isinstance(ben.to_device[0], UnknownToDeviceEvent)
    assert (ben.to_device[0].sender, ben.to_device[0].source["content"]) == (anna.user_id, {"steps": 7})
    openid = good(await ben.client.get_openid_token(ben.user_id))
    assert openid.matrix_server_name == ben.user_id.partition(":")[2]


def _account_data(person: Person, kind: str) -> Any:
    found = [event.content for event in person.account_data if getattr(event, "type", None) == kind]
    return found[-1] if found else None


async def _spaces(anna: Person, ben: Person, room_id: str, unique: str) -> None:
    """A tree in pages, and the directory that leads to it."""
    public = {"preset": RoomPreset.public_chat, "visibility": RoomVisibility.public}
    space = good(await anna.client.room_create(name=f"Space {unique}", alias=f"space{unique}", space=True, **public))
    market = good(await anna.client.room_create(name=f"Market {unique}", **public)).room_id
    inner = good(await anna.client.room_create(name="Inner", space=True, preset=RoomPreset.public_chat)).room_id
    server = anna.user_id.partition(":")[2]
    for child in (market, inner, room_id):
        more = {"via": [server], "suggested": child == market}
        good(await anna.client.room_put_state(space.room_id, "m.space.child", more, child))
    good(
        await anna.client.room_put_state(market, "m.space.parent", {"via": [server], "canonical": True}, space.room_id)
    )
    listed = good(await ben.client.list_public_rooms(filter_generic_search_term=unique, filter_room_types=["m.space"]))
    assert [(room.room_id, room.room_type) for room in listed.public_rooms] == [(space.room_id, "m.space")]
    resolved = good(await ben.client.room_resolve_alias(f"#space{unique}:{server}"))
    assert resolved.room_id == space.room_id
    assert good(await ben.client.room_get_visibility(market)).visibility == "public"
    good(await ben.client.join(f"#space{unique}:{server}"))
    seen = await ben.joined(space.room_id)
    assert seen.room_type == "m.space"
    assert seen.children == {market, inner, room_id}
    first = good(await ben.client.space_get_hierarchy(space.room_id, limit=2))
    rest = good(await ben.client.space_get_hierarchy(space.room_id, from_page=first.next_batch))
    assert (len(first.rooms), rest.next_batch) == (2, None)
    rooms = [room["room_id"] for page in (first, rest) for room in page.rooms]
    assert sorted(rooms) == sorted([space.room_id, market, inner, room_id])
    suggested = good(await ben.client.space_get_hierarchy(space.room_id, suggested_only=True)).rooms
    assert [room["room_id"] for room in suggested] == [space.room_id, market]
    good(await anna.client.room_put_state(space.room_id, "m.space.child", {}, inner))
    await ben.until("one child less", lambda: seen.children == {market, room_id})
    good(await ben.client.join(market))
    assert (await ben.joined(market)).parents == {space.room_id}
    assert set(good(await ben.client.joined_rooms()).rooms) == {space.room_id, market, room_id}


async def _knock(anna: Person, ben: Person) -> None:
    """Refused, asked again, let in, thrown out, and let in no more."""
    room_id = good(await anna.client.room_create(name="Closed")).room_id
    refused(await ben.client.room_knock(room_id, "before one may"), "M_FORBIDDEN")
    good(await anna.client.room_enable_knocking(room_id))
    refused(await ben.client.join(room_id), "M_FORBIDDEN")
    good(await ben.client.room_knock(room_id, "let me in"))
    assert (await anna.saw_member(room_id, ben.user_id, "knock")).content["reason"] == "let me in"
    good(await anna.client.room_kick(room_id, ben.user_id, "not today"))
    await ben.until("the refusal", lambda: room_id in ben.left)
    good(await ben.client.room_knock(room_id, "today?"))
    await anna.saw_member(room_id, ben.user_id, "knock")
    good(await anna.client.room_invite(room_id, ben.user_id))
    await ben.until("the invite", lambda: room_id in ben.client.invited_rooms)
    good(await ben.client.join(room_id))
    await ben.joined(room_id)
    good(await anna.client.room_ban(room_id, ben.user_id, "enough"))
    await ben.until("the end", lambda: room_id in ben.left)
    refused(await ben.client.room_knock(room_id), "M_FORBIDDEN")
    good(await anna.client.room_unban(room_id, ben.user_id))
    good(await ben.client.room_forget(room_id))
    good(await anna.client.room_leave(room_id))
    await anna.until("the way out", lambda: room_id in anna.left)


async def _upgrade(anna: Person, ben: Person, unique: str) -> None:
    """nio's upgrade, which makes the new room itself, and then the server's."""
    alias = f"#club{unique}:{anna.user_id.partition(':')[2]}"
    created = await anna.client.room_create(
        name="Club", topic="of old", room_version="10", alias=f"club{unique}", preset=RoomPreset.public_chat
    )
    old = good(created).room_id
    good(await ben.client.join(old))
    await ben.joined(old)
    await ben.call("PUT", f"user/{ben.user_id}/rooms/{old}/tags/u.clubs", {})
    middle = good(await anna.client.room_upgrade(old, "11")).room_id
    new = (await anna.call("POST", f"rooms/{middle}/upgrade", {"new_version": "12"}))["replacement_room"]
    room_id = old
    for successor, version in ((middle, "11"), (new, "12")):
        await ben.until("the tombstone", lambda: ben.room(room_id).replacement_room)  # noqa: B023  (awaited here)
        assert ben.room(room_id).replacement_room == successor
        good(await ben.client.join(successor))
        room = await ben.joined(successor)
        assert (room.name, room.topic, room.room_version) == ("Club", "of old", version)
        create = good(await ben.client.room_get_state_event(successor, "m.room.create")).content
        assert create["predecessor"]["room_id"] == room_id
        room_id = successor
    assert good(await ben.client.room_resolve_alias(alias)).room_id == new
    await ben.until("the alias", lambda: ben.room(new).canonical_alias == alias)
    await ben.heard(await anna.say(new, "we have moved"))
    late = {"msgtype": "m.text", "body": "too late"}
    refused(await ben.client.room_send(middle, "m.room.message", late), "M_FORBIDDEN")
    good(await anna.client.room_delete_alias(alias))
    refused(await ben.client.room_resolve_alias(alias), "M_NOT_FOUND")


async def _devices(server: ServerProcess, anna: Person) -> None:
    """A second device is named, and deleted with the password."""
    other = AsyncClient(server.base_url, anna.user_id, config=CONFIG)
    good(await other.login(PASSWORD, device_name="another"))
    good(await anna.client.update_device(other.device_id, {"display_name": "to be deleted"}))
    devices = good(await anna.client.devices()).devices
    assert {device.id: device.display_name for device in devices}[other.device_id] == "to be deleted"
    asked = await anna.client.delete_devices([other.device_id])
    assert isinstance(asked, DeleteDevicesAuthResponse)
    assert {"stages": ["m.login.password"]} in asked.flows
    user = {"type": "m.id.user", "user": anna.user_id}
    auth: Any = {"type": "m.login.password", "identifier": user, "password": PASSWORD, "session": asked.session}
    good(await anna.client.delete_devices([other.device_id], auth))
    refused(await other.whoami(), "M_UNKNOWN_TOKEN")
    await other.close()
    assert good(await anna.client.whoami()).user_id == anna.user_id
