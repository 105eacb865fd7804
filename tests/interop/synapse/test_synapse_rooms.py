"""What happens in rooms of Tessera and a real Synapse, seen from both: messages, history, upgrades, spaces."""

import asyncio
import secrets
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest

from tests.fixtures.meeting import Meeting, Watch, eventually, until_member
from tests.fixtures.whole_server import Device

pytestmark = pytest.mark.asyncio(loop_scope="session")
HISTORY = 500
AT_ONCE = 10


async def test_messages_edits_and_redactions(meeting: Meeting) -> None:
    room_id = await meeting.share_room()
    watches = {one.user_id: await Watch.begin(one) for one in (meeting.alice, meeting.bob)}
    for sender, other in ((meeting.alice, meeting.bob), (meeting.bob, meeting.alice)):
        watch = watches[other.user_id]
        event_id = await sender.send(room_id, "frist")
        shown = await watch.until_event(room_id, event_id)
        assert (shown["sender"], shown["content"]["body"]) == (sender.user_id, "frist")
        await other.put(f"/rooms/{room_id}/send/m.reaction/{event_id[1:9]}", annotation(event_id))
        edit_id = (await sender.put(f"/rooms/{room_id}/send/m.room.message/e{event_id[1:9]}", edit(event_id)))[
            "event_id"
        ]
        await watch.until_event(room_id, edit_id)
        bundled = (await other.get(f"/rooms/{room_id}/event/{quote(event_id)}"))["unsigned"]["m.relations"]
        assert bundled["m.replace"]["event_id"] == edit_id
        await watches[sender.user_id].until(lambda: reacted(watches[sender.user_id], room_id, event_id), "a reaction")  # noqa: B023
        # Bob takes back what is his own, and Alice, whose room it is, what is Bob's.
        secret = await meeting.bob.send(room_id, f"secret of {sender.user_id}")
        await watches[meeting.alice.user_id].until_event(room_id, secret)
        redaction = await sender.put(f"/rooms/{room_id}/redact/{quote(secret)}/r{secret[1:9]}", {"reason": "oops"})
        await watch.until_event(room_id, redaction["event_id"])
        for device in (sender, other):
            event = await eventually(partial(redacted, device, room_id, secret), "a redacted event")
            assert event["content"] == {}
            assert event["unsigned"]["redacted_because"]["event_id"] == redaction["event_id"]


def annotation(event_id: str) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": "m.annotation", "event_id": event_id, "key": "👍"}}


def edit(event_id: str) -> dict[str, Any]:
    new = {"msgtype": "m.text", "body": "first"}
    return {
        **new,
        "body": "* first",
        "m.new_content": new,
        "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
    }


def reacted(watch: Watch, room_id: str, event_id: str) -> bool:
    relations = [event["content"].get("m.relates_to", {}) for event in watch.events[room_id]]
    return any(one.get("event_id") == event_id and one["rel_type"] == "m.annotation" for one in relations)


async def redacted(device: Device, room_id: str, event_id: str) -> Any:
    """An event, once it is redacted."""
    event = await device.get(f"/rooms/{room_id}/event/{quote(event_id)}")
    return event if "redacted_because" in event.get("unsigned", {}) else None


async def test_receipts_typing_and_presence(meeting: Meeting) -> None:
    room_id = await meeting.share_room()
    at_alices, at_bobs = await Watch.begin(meeting.alice), await Watch.begin(meeting.bob)
    pairs = ((meeting.alice, at_alices, at_bobs), (meeting.bob, at_bobs, at_alices))
    for sender, heard, watch in pairs:
        event_id = await sender.send(room_id, f"from {sender.user_id}")
        await watch.until_event(room_id, event_id)
        reader = watch.device
        await reader.post(f"/rooms/{room_id}/receipt/m.read/{quote(event_id)}")
        await heard.until(lambda: reader.user_id in heard.readers(room_id, event_id), "a receipt")  # noqa: B023
    for sender, _, watch in pairs:
        path = f"/rooms/{room_id}/typing/{quote(sender.user_id)}"
        await sender.put(path, {"typing": True, "timeout": 30_000})
        await watch.until(lambda: watch.typists(room_id) == [sender.user_id], "typing")  # noqa: B023
        await sender.put(path, {"typing": False})
        await watch.until(lambda: watch.typists(room_id) == [], "no typing")  # noqa: B023
    for sender, _, watch in pairs:
        text = f"I am {sender.user_id}"
        await sender.put(f"/presence/{quote(sender.user_id)}/status", {"presence": "online", "status_msg": text})
        await watch.until(lambda: text in [one["content"].get("status_msg") for one in watch.presence], "presence")  # noqa: B023


async def test_profile_change(meeting: Meeting) -> None:
    room_id = await meeting.share_room()
    for owner, other in ((meeting.alice, meeting.bob), (meeting.bob, meeting.alice)):
        watch = await Watch.begin(other)
        name, picture = f"Name of {owner.user_id}", f"mxc://{meeting.alices.server_name}/{secrets.token_hex(8)}"
        await owner.put(f"/profile/{quote(owner.user_id)}/displayname", {"displayname": name})
        await owner.put(f"/profile/{quote(owner.user_id)}/avatar_url", {"avatar_url": picture})
        wanted = {"displayname": name, "avatar_url": picture, "membership": "join"}
        await watch.until(
            lambda: any(event["content"].items() >= wanted.items() for event in watch.events.get(room_id, ())),  # noqa: B023
            "the new name in the room",
        )
        found = await other.get(f"/profile/{quote(owner.user_id)}")
        assert (found["displayname"], found["avatar_url"]) == (name, picture)
        assert await other.get(f"/profile/{quote(owner.user_id)}/displayname") == {"displayname": name}
        nobody = quote(f"@nobody{secrets.token_hex(4)}:{owner.user_id.split(':', 1)[1]}")
        assert await other.refused("GET", f"/profile/{nobody}") == (404, "M_NOT_FOUND")


async def history(device: Device, room_id: str) -> list[str]:
    """The bodies of all messages that the device's server gives, the oldest first."""
    found: list[str] = []
    query: dict[str, Any] = {"dir": "b", "limit": 100}
    while True:
        page = await device.get(f"/rooms/{room_id}/messages", **query)
        found += [event["content"]["body"] for event in page["chunk"] if event["type"] == "m.room.message"]
        if "end" not in page or any(event["type"] == "m.room.create" for event in page["chunk"]):
            return found[::-1]
        query["from"] = page["end"]


async def test_backfill_of_500_messages(meeting: Meeting) -> None:
    room_id = await meeting.make_room(preset="public_chat")
    for first in range(0, HISTORY, AT_ONCE):
        await asyncio.gather(*(meeting.alice.send(room_id, f"{first + number}") for number in range(AT_ONCE)))
    sent = await history(meeting.alice, room_id)
    assert_all_sent(sent)
    await meeting.bob_joins(room_id)
    found = await history(meeting.bob, room_id)
    assert_all_sent(found)
    # It is kept: nobody is asked again.
    assert await history(meeting.bob, room_id) == found


def assert_all_sent(texts: list[str]) -> None:
    """Each once, round for round; Synapse forks the room for those of one round."""
    numbers = [int(text) for text in texts]
    assert sorted(numbers) == list(range(HISTORY))
    rounds = [number // AT_ONCE for number in numbers]
    assert rounds == sorted(rounds)


async def test_upgrade(meeting: Meeting) -> None:
    alice, bob = meeting.alice, meeting.bob
    old = await meeting.share_room(name="A room")
    watch = await Watch.begin(bob)
    new = (await alice.post(f"/rooms/{old}/upgrade", {"new_version": "12"}))["replacement_room"]

    def tombstone() -> Any:
        return next((e for e in watch.events.get(old, ()) if e["type"] == "m.room.tombstone"), None)

    assert (await watch.until(tombstone, "the tombstone"))["content"]["replacement_room"] == new
    await meeting.bob_joins(new)
    await until_member(alice, new, bob.user_id, "join")
    create = await bob.get(f"/rooms/{new}/state/m.room.create")
    assert (create["room_version"], create["predecessor"]["room_id"]) == ("12", old)
    assert await bob.get(f"/rooms/{new}/state/m.room.name") == {"name": "A room"}
    event_id = await bob.send(new, "in the new one")
    await (await Watch.begin(alice)).until_event(new, event_id)


async def test_space_hierarchy(meeting: Meeting) -> None:
    """Bob sees the rooms of a space of which his server knows the space at most."""
    alice, bob = meeting.alice, meeting.bob
    name = meeting.alices.server_name
    rooms = {title: await meeting.make_room(preset="public_chat", name=title) for title in ("One", "Two")}
    secret = await meeting.make_room(preset="private_chat", name="Secret")
    inner = await meeting.make_room(preset="public_chat", name="Inner", creation_content={"type": "m.space"})
    space = await meeting.make_room(preset="public_chat", name="Space", creation_content={"type": "m.space"})
    for parent, child in ((space, rooms["One"]), (space, inner), (space, secret), (inner, rooms["Two"])):
        await alice.put(f"/rooms/{parent}/state/m.space.child/{child}", {"via": [name]})
    await meeting.bob_joins(space)

    async def names() -> set[str]:
        answer = await bob.get(f"/rooms/{space}/hierarchy", version="v1")
        return {one.get("name") for one in answer["rooms"]}

    found: set[str] = set()

    async def all_there() -> bool:
        found.clear()
        found.update(await names())
        return found == {"Space", "Inner", "One", "Two"}

    await eventually(all_there, lambda: f"all rooms of the space; there are {found}")


async def test_public_rooms(meeting: Meeting) -> None:
    title, local = f"Open {secrets.token_hex(4)}", f"room{secrets.token_hex(4)}"
    server = meeting.alices.server_name
    room_id = await meeting.make_room(preset="public_chat", room_alias_name=local, visibility="public", name=title)
    found = await meeting.bob.get(f"/directory/room/{quote(f'#{local}:{server}', safe='')}")
    assert (found["room_id"], server in found["servers"]) == (room_id, True)

    async def listed() -> bool:
        # Synapse asks the same again only after half a minute.
        page = await meeting.bob.get("/publicRooms", server=server, limit=1_000 + secrets.randbelow(1_000_000))
        return room_id in [one["room_id"] for one in page["chunk"]]

    async def searched() -> bool:
        status, page = await meeting.bob.call(
            "POST", "/publicRooms", {"filter": {"generic_search_term": title.split()[1]}}, server=server
        )
        assert status == 200, page
        return bool([(one["room_id"], one["name"]) for one in page["chunk"]] == [(room_id, title)])

    await eventually(searched, "the room by its name")
    await eventually(listed, "the room in the list")
