"""What clients meet in /sync in their first week, against a whole server. Spec: C-S API §Syncing."""

import asyncio
from typing import Any

import pytest

from tests.fixtures.whole_server import Device, Talk, WholeServer

LONG_POLL_MS = 20_000


def joined(answer: dict[str, Any], room_id: str) -> dict[str, Any]:
    section: dict[str, Any] = answer["rooms"]["join"][room_id]
    return section


def account_data(answer: dict[str, Any]) -> dict[str, Any]:
    return {event["type"]: event["content"] for event in answer.get("account_data", {}).get("events", [])}


def bodies(section: dict[str, Any]) -> list[str]:
    return [event["content"].get("body", event["type"]) for event in section["timeline"]["events"]]


async def until(device: Device, since: str, wanted: Any) -> dict[str, Any]:
    """Sync on until an answer has what is wanted: other news may come first."""
    async with asyncio.timeout(LONG_POLL_MS / 1000):
        while True:
            answer = await device.sync(since, timeout=LONG_POLL_MS)
            if wanted(answer):
                return answer
            since = answer["next_batch"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/pushrules/global/content/tea", {"pattern": "tea", "actions": ["notify"]}),
        ("PUT", "/pushrules/global/underride/.m.rule.message/enabled", {"enabled": False}),
        ("PUT", "/pushrules/global/underride/.m.rule.message/actions", {"actions": []}),
    ],
)
async def test_a_changed_push_rule_comes_with_the_whole_rules(
    alice: Device, method: str, path: str, body: dict[str, Any]
) -> None:
    first = await alice.sync()
    before = account_data(first)["m.push_rules"]
    assert (await alice.call(method, path, body))[0] == 200
    after = account_data(await alice.sync(first["next_batch"]))["m.push_rules"]
    assert after != before
    assert after == await alice.get("/pushrules/")


async def test_an_empty_limited_timeline_has_prev_batch_and_the_state(talk: Talk) -> None:
    token = (await talk.bob.sync())["next_batch"]
    await talk.alice.put(f"/rooms/{talk.room_id}/state/m.room.topic", {"topic": "new"})
    last = await talk.alice.send(talk.room_id, "hello")
    section = joined(await talk.bob.sync(token, filter='{"room":{"timeline":{"limit":0}}}'), talk.room_id)
    assert section["timeline"]["limited"] is True
    assert section["timeline"]["events"] == []
    assert [event["content"] for event in section["state"]["events"]] == [{"topic": "new"}]
    back = section["timeline"]["prev_batch"]
    page = await talk.bob.get(f"/rooms/{talk.room_id}/messages", dir="b", **{"from": back}, limit=1)
    assert [event["event_id"] for event in page["chunk"]] == [last]


async def test_an_invite_brings_itself_and_the_creation(alice: Device, bob: Device) -> None:
    token = (await bob.sync())["next_batch"]
    room_id = await alice.make_room(name="Tea", invite=[bob.user_id])
    for since in (token, None):
        answer = await bob.sync(since)
        stripped = answer["rooms"]["invite"][room_id]["invite_state"]["events"]
        told = {(event["type"], event["state_key"]): event for event in stripped}
        assert told["m.room.member", bob.user_id]["content"]["membership"] == "invite"
        assert told["m.room.member", bob.user_id]["sender"] == alice.user_id
        assert told["m.room.create", ""]["content"]["room_version"] == "12"
        assert told["m.room.name", ""]["content"] == {"name": "Tea"}


async def test_member_events_carry_what_they_replace(talk: Talk) -> None:
    token = (await talk.alice.sync())["next_batch"]
    await talk.bob.post(f"/rooms/{talk.room_id}/leave")
    [left] = joined(await talk.alice.sync(token), talk.room_id)["timeline"]["events"]
    assert (left["content"]["membership"], left["unsigned"]["prev_content"]["membership"]) == ("leave", "join")


async def test_the_summary_comes_when_it_changes(server: WholeServer, talk: Talk) -> None:
    lazy = '{"room":{"state":{"lazy_load_members":true}}}'
    first = await talk.alice.sync(filter=lazy)
    section = joined(first, talk.room_id)
    assert section["summary"]["m.heroes"] == [talk.bob.user_id]
    shown = section["state"]["events"] + section["timeline"]["events"]
    assert talk.bob.user_id in {event.get("state_key") for event in shown}
    await talk.alice.send(talk.room_id, "x")
    second = await talk.alice.sync(first["next_batch"], filter=lazy)
    assert not joined(second, talk.room_id).get("summary")
    carol = await server.register("carol")
    await talk.alice.post(f"/rooms/{talk.room_id}/invite", {"user_id": carol.user_id})
    third = joined(await talk.alice.sync(second["next_batch"], filter=lazy), talk.room_id)["summary"]
    assert third["m.invited_member_count"] == 1
    assert set(third["m.heroes"]) == {talk.bob.user_id, carol.user_id}


async def test_the_transaction_id_is_for_the_sending_device(server: WholeServer, talk: Talk) -> None:
    other = await server.login("alice")
    tokens = {device: (await device.sync())["next_batch"] for device in (talk.alice, other, talk.bob)}
    await talk.alice.send(talk.room_id, "x", "mine")
    seen = {device: joined(await device.sync(token), talk.room_id) for device, token in tokens.items()}
    shown = [section["timeline"]["events"][-1]["unsigned"].get("transaction_id") for section in seen.values()]
    assert shown == ["mine", None, None]


async def test_two_requests_with_one_token_get_the_data(talk: Talk) -> None:
    token = (await talk.bob.sync())["next_batch"]
    parked = [asyncio.create_task(talk.bob.sync(token, timeout=LONG_POLL_MS)) for _ in range(2)]
    sent = await talk.alice.send(talk.room_id, "x")
    answers = [*await asyncio.gather(*parked), await talk.bob.sync(token)]
    for answer in answers:
        assert [event["event_id"] for event in joined(answer, talk.room_id)["timeline"]["events"]] == [sent]


async def test_an_ignored_user_is_silent_from_the_answer_on(talk: Talk) -> None:
    token = (await talk.bob.sync())["next_batch"]
    before = await talk.alice.send(talk.room_id, "before")
    content: dict[str, Any] = {"ignored_users": {talk.alice.user_id: {}}}
    await talk.bob.put(f"/user/{talk.bob.user_id}/account_data/m.ignored_user_list", content)
    await talk.alice.send(talk.room_id, "after")
    await talk.alice.put(f"/rooms/{talk.room_id}/state/m.room.topic", {"topic": "state stays"})
    elsewhere = await talk.alice.make_room(invite=[talk.bob.user_id])
    answer = await talk.bob.sync(token)
    assert bodies(joined(answer, talk.room_id)) == ["m.room.topic"]
    assert elsewhere not in answer["rooms"].get("invite", {})
    page = await talk.bob.get(f"/rooms/{talk.room_id}/messages", dir="b", limit=5)
    assert before not in {event["event_id"] for event in page["chunk"]}
    fresh = joined(await talk.bob.sync(), talk.room_id)
    assert {"before", "after"}.isdisjoint(bodies(fresh))


async def test_a_receipt_reaches_a_waiting_client_at_once_and_others_follow_together(talk: Talk) -> None:
    first, second = [await talk.alice.send(talk.room_id, text) for text in ("one", "two")]
    token = (await talk.alice.sync())["next_batch"]

    def receipts_of(answer: dict[str, Any]) -> dict[str, Any]:
        section = answer.get("rooms", {}).get("join", {}).get(talk.room_id, {})
        events = section.get("ephemeral", {}).get("events", [])
        return next((dict(event["content"]) for event in events if event["type"] == "m.receipt"), {})

    await talk.bob.post(f"/rooms/{talk.room_id}/receipt/m.read/{first}")
    await talk.bob.post(f"/rooms/{talk.room_id}/receipt/m.read/{second}")
    answer = await until(talk.alice, token, lambda answer: first in receipts_of(answer))
    assert talk.bob.user_id in receipts_of(answer)[first]["m.read"]
    answer = await until(talk.alice, answer["next_batch"], lambda answer: second in receipts_of(answer))
    assert talk.bob.user_id in receipts_of(answer)[second]["m.read"]


async def test_a_receipt_for_an_event_that_is_not_there_waits(talk: Talk) -> None:
    await talk.bob.post(f"/rooms/{talk.room_id}/receipt/m.read/$not-here-yet")
    assert await talk.bob.refused(
        "POST", f"/rooms/{talk.room_id}/receipt/m.read/$not-here-yet", {"thread_id": "nonsense"}
    ) == (400, "M_INVALID_PARAM")


async def test_key_counts_are_in_every_answer(alice: Device) -> None:
    first = await alice.sync()
    assert first["device_one_time_keys_count"] == {"signed_curve25519": 0}
    assert first["device_unused_fallback_key_types"] == []
    await alice.post("/keys/upload", {"one_time_keys": {"curve25519:A": "YWJj", "curve25519:B": "YWJk"}})
    answer = await alice.sync(first["next_batch"])
    idle = await alice.sync(answer["next_batch"])
    for one in (answer, idle):
        assert one["device_one_time_keys_count"]["curve25519"] == 2
        assert one["device_unused_fallback_key_types"] == []


@pytest.mark.parametrize("path", ["/logout", "/logout/all"])
async def test_a_logout_ends_the_parked_sync(alice: Device, path: str) -> None:
    token = (await alice.sync())["next_batch"]
    parked = asyncio.create_task(alice.refused("GET", "/sync", since=token, timeout=LONG_POLL_MS))
    await alice.get("/account/whoami")  # the parked request has gone ahead of it
    await alice.post(path)
    async with asyncio.timeout(5):
        assert await parked == (401, "M_UNKNOWN_TOKEN")
