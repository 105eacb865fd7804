"""Upgrades of rooms, from the request to what users take along. Spec: C-S API §Room upgrades."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from room_clients import Client
from seeded_rooms import ALICE, BOB, CAROL, SERVER

from matrixcore.identifiers import UserId
from services.gateway import room_upgrade_saga
from services.projector.upgraded_rooms import CONSUMER, UpgradedRoomsStep
from tessera.record_consumer import RecordConsumer
from tessera.storage import account_data, push_rules, room_upgrades, users
from tessera.storage.database import Database
from tessera.storage.room_upgrades import UpgradePhase
from tessera.storage.shards import RoomShards

DAVE = UserId(f"@dave:{SERVER}")


@pytest.fixture
def consumer(accounts: Database, shards: RoomShards, gateway: SimpleNamespace) -> RecordConsumer:
    step = UpgradedRoomsStep(shards, gateway.fanout, SERVER)
    return RecordConsumer(CONSUMER, step, gateway.records, accounts, shards, gateway.clock)


@pytest.fixture
async def people(accounts: Database, writer: object, http: httpx.AsyncClient) -> list[Client]:
    """Alice, Bob and Carol."""
    async with accounts.transaction() as tx:
        for user_id in (ALICE, BOB, CAROL):
            await users.add_user(tx, user_id, password_hash=None, displayname=None, now_ms=1)
    return [Client(http, user_id, "D") for user_id in (ALICE, BOB, CAROL)]


async def state_of(client: Client, room_id: str) -> dict[tuple[str, str], Any]:
    events = await client.get(f"/rooms/{room_id}/state")
    return {(event["type"], event["state_key"]): event["content"] for event in events}


async def upgraded(client: Client, room_id: str, version: str = "12", **fields: Any) -> str:
    reply = await client.post(f"/rooms/{room_id}/upgrade", {"new_version": version, **fields})
    new_room_id: str = reply["replacement_room"]
    return new_room_id


async def test_the_new_room_has_what_the_old_one_had(people: list[Client]) -> None:
    alice, bob, _ = people
    body = {
        "room_version": "11",
        "room_alias_name": "tea",
        "name": "Tea",
        "topic": "Leaves",
        "preset": "public_chat",
        "visibility": "public",
        "creation_content": {"m.federate": False},
        "initial_state": [
            {"type": "m.room.avatar", "content": {"url": "mxc://here.org/tea"}},
            {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
            {"type": "m.room.server_acl", "content": {"allow": ["*"], "deny": ["evil.org"]}},
            {"type": "org.example.own", "content": {"its": "sender matters"}},
        ],
        "power_level_content_override": {"users": {ALICE: 100, BOB: 50}, "events_default": 10},
    }
    old = (await alice.post("/createRoom", body))["room_id"]
    await bob.post(f"/join/{old}")
    await alice.post(f"/rooms/{old}/ban", {"user_id": DAVE, "reason": "coffee"})
    before = await state_of(alice, old)
    last = (await alice.get(f"/rooms/{old}/messages?dir=b&limit=1"))["chunk"][0]["event_id"]
    new = await upgraded(alice, old)
    after = await state_of(alice, new)
    copied = ("name", "topic", "avatar", "encryption", "server_acl", "join_rules", "history_visibility", "guest_access")
    for name in copied:
        assert after[f"m.room.{name}", ""] == before[f"m.room.{name}", ""], name
    create = after["m.room.create", ""]
    predecessor = {"room_id": old, "event_id": last}
    assert create == {"room_version": "12", "predecessor": predecessor, "m.federate": False}
    assert after["m.room.member", DAVE] == {"membership": "ban", "reason": "coffee"}
    assert after["m.room.power_levels", ""] == {**before["m.room.power_levels", ""], "users": {BOB: 50}}
    assert after["m.room.canonical_alias", ""] == {"alias": f"#tea:{SERVER}"}
    assert ("org.example.own", "") not in after
    assert ("m.room.member", BOB) not in after
    assert (await alice.get(f"/directory/room/%23tea:{SERVER}"))["room_id"] == new
    assert (await alice.get(f"/directory/list/room/{new}"))["visibility"] == "public"
    assert (await alice.get(f"/directory/list/room/{old}"))["visibility"] == "private"
    left = await state_of(alice, old)
    assert left["m.room.tombstone", ""]["replacement_room"] == new
    assert left["m.room.canonical_alias", ""] == {}
    levels = left["m.room.power_levels", ""]
    assert (levels["events_default"], levels["invite"]) == (50, 50)


async def test_versions_without_privileged_creators(people: list[Client]) -> None:
    """The one who upgrades is on top only as long as needed; the levels of version 12's creators become numbers."""
    alice, bob, _ = people
    events = {"m.room.tombstone": 60, "m.room.power_levels": 100}
    levels = {"users": {ALICE: 100, BOB: 60}, "events": events, "ban": 75, "users_default": 55}
    body = {"room_version": "9", "preset": "public_chat", "power_level_content_override": levels}
    old = (await alice.post("/createRoom", body))["room_id"]
    await alice.post(f"/rooms/{old}/ban", {"user_id": DAVE})
    await bob.post(f"/join/{old}")
    new = await upgraded(bob, old, "10", additional_creators=["nobody"])
    after = await state_of(bob, new)
    assert after["m.room.member", DAVE]["membership"] == "ban"
    assert after["m.room.power_levels", ""]["users"] == {ALICE: 100, BOB: 60}
    assert after["m.room.create", ""]["creator"] == BOB
    assert after["m.room.create", ""]["predecessor"]["event_id"].startswith("$")
    # Bob has not the power to change the old room's levels: it stays as it is.
    assert (await state_of(bob, old))["m.room.power_levels", ""].get("events_default", 0) == 0
    twelve = await upgraded(bob, new, "12", additional_creators=[ALICE, BOB])
    content = (await state_of(bob, twelve))["m.room.create", ""]
    assert content["additional_creators"] == [ALICE]
    assert (await state_of(bob, twelve))["m.room.power_levels", ""]["users"] == {}
    eleven = await upgraded(bob, twelve, "11")
    assert (await state_of(bob, eleven))["m.room.power_levels", ""]["users"] == {ALICE: 100, BOB: 100}


async def test_spaces_keep_their_children(people: list[Client]) -> None:
    alice = people[0]
    children = [
        {"type": "m.space.child", "state_key": f"!{n}:{SERVER}", "content": {"via": [SERVER]}} for n in range(3)
    ]
    gone = {"type": "m.space.child", "state_key": f"!gone:{SERVER}", "content": {}}
    body = {"creation_content": {"type": "m.space"}, "initial_state": [*children, gone], "room_version": "11"}
    old = (await alice.post("/createRoom", body))["room_id"]
    after = await state_of(alice, await upgraded(alice, old))
    assert after["m.room.create", ""]["type"] == "m.space"
    assert {key for kind, key in after if kind == "m.space.child"} == {child["state_key"] for child in children}


async def test_who_may_upgrade(people: list[Client]) -> None:
    alice, bob, carol = people
    old = (await alice.post("/createRoom", {"preset": "public_chat"}))["room_id"]
    await bob.post(f"/join/{old}")
    path = f"/rooms/{old}/upgrade"
    assert await bob.refused("POST", path, {"new_version": "12"}) == (403, "M_FORBIDDEN")
    assert await carol.refused("POST", path, {"new_version": "12"}) == (403, "M_FORBIDDEN")
    assert await alice.refused("POST", path, {"new_version": "none"}) == (400, "M_UNSUPPORTED_ROOM_VERSION")
    assert await alice.refused("POST", path, {}) == (400, "M_MISSING_PARAM")
    assert await alice.refused("POST", path, {"new_version": 12}) == (400, "M_BAD_JSON")
    wrong = {"new_version": "12", "additional_creators": ["bob"]}
    assert await alice.refused("POST", path, wrong) == (400, "M_INVALID_PARAM")
    assert await alice.refused("POST", f"/rooms/!no:{SERVER}/upgrade", {"new_version": "12"}) == (403, "M_FORBIDDEN")


@pytest.mark.parametrize("fatal", ["create", "copy", "tombstone", "aliases", "restrict", "settings"])
async def test_killed_in_the_middle_it_goes_on(
    people: list[Client],
    gateway: SimpleNamespace,
    accounts: Database,
    monkeypatch: pytest.MonkeyPatch,
    fatal: str,
) -> None:
    """Whichever step was done and not noted, there is one new room at the end, and one of each event."""
    alice = people[0]
    body = {"room_alias_name": "tea", "preset": "public_chat", "room_version": "11"}
    old = (await alice.post("/createRoom", body))["room_id"]
    await alice.post(f"/rooms/{old}/ban", {"user_id": DAVE})

    async def killed(tx: Any, upgrade: Any, phase: UpgradePhase) -> Any:
        if upgrade.phase == fatal:
            raise ConnectionResetError
        return await advance(tx, upgrade, phase)

    advance = room_upgrades.advance_upgrade
    monkeypatch.setattr(room_upgrades, "advance_upgrade", killed)
    assert await alice.refused("POST", f"/rooms/{old}/upgrade", {"new_version": "12"}) == (503, "M_UNKNOWN")
    monkeypatch.undo()
    await room_upgrade_saga.carry_on_all(gateway.rooms)  # somebody may still be at it
    assert await accounts.fetchval("SELECT phase FROM accounts.room_upgrades") == fatal
    await accounts.execute("UPDATE accounts.room_upgrades SET phase_at = now() - interval '31 seconds'")
    await room_upgrade_saga.carry_on_all(gateway.rooms)
    new = await accounts.fetchval("SELECT new_room_id FROM accounts.room_upgrades WHERE phase = 'done'")
    assert await upgraded(alice, old) == new  # who never heard of it asks again
    after = await state_of(alice, new)
    assert after["m.room.member", DAVE]["membership"] == "ban"
    assert after["m.room.canonical_alias", ""]["alias"] == f"#tea:{SERVER}"
    assert (await alice.get(f"/directory/room/%23tea:{SERVER}"))["room_id"] == new
    tombstones = await accounts.fetch("SELECT room_id FROM rooms.events WHERE type = 'm.room.tombstone'")
    assert [row[0] for row in tombstones] == [old]
    assert await accounts.fetchval("SELECT count(*) FROM rooms.rooms") == 2
    await accounts.execute("UPDATE accounts.room_upgrades SET phase_at = now() - interval '11 minutes'")
    await room_upgrade_saga.carry_on_all(gateway.rooms)
    assert await accounts.fetchval("SELECT count(*) FROM accounts.room_upgrades") == 0


async def test_an_upgrade_that_the_old_room_refuses_is_given_up(
    people: list[Client], accounts: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = people[0]
    body = {"preset": "public_chat", "room_version": "11", "power_level_content_override": {"users": {ALICE: 100}}}
    old = (await alice.post("/createRoom", body))["room_id"]
    create = room_upgrade_saga._create

    async def meanwhile(changes: Any, upgrade: Any) -> None:
        await create(changes, upgrade)
        await alice.put(f"/rooms/{old}/state/m.room.power_levels", {"users": {ALICE: 10, BOB: 100}})

    monkeypatch.setitem(
        room_upgrade_saga._STEPS,
        UpgradePhase.CREATE,
        (meanwhile, UpgradePhase.COPY),
    )
    assert await alice.refused("POST", f"/rooms/{old}/upgrade", {"new_version": "12"}) == (403, "M_FORBIDDEN")
    assert await accounts.fetchval("SELECT count(*) FROM accounts.room_upgrades") == 0
    assert ("m.room.tombstone", "") not in await state_of(alice, old)


async def test_settings_go_along(people: list[Client], consumer: RecordConsumer, accounts: Database) -> None:
    """With the one who upgrades at once, with others when they join; a room that lies about its past gets nothing."""
    alice, bob, _ = people
    old = (await alice.post("/createRoom", {"preset": "public_chat", "room_version": "11"}))["room_id"]
    await bob.post(f"/join/{old}")
    rules = (
        b'{"own":{"room":[{"rule_id":"%b","actions":["notify"],"enabled":false}],"override":[{"rule_id":"%b","actions":'
        b'[],"enabled":true,"conditions":[{"kind":"event_match","key":"room_id","pattern":"%b"}]}]},"changes":[]}'
    ) % ((old.encode(),) * 3)
    async with accounts.transaction() as tx:
        for user_id in (ALICE, BOB):
            await account_data.set_content(tx, user_id, old, "m.tag", b'{"tags":{"m.favourite":{"order":0.5}}}')
            await account_data.set_content(tx, user_id, "", "m.direct", b'{"@x:y":["%b"]}' % old.encode())
            await push_rules.set_rules(tx, user_id, rules)
    new = await upgraded(alice, old)
    liar = {"creation_content": {"predecessor": {"room_id": old}}, "preset": "public_chat"}
    false = (await alice.post("/createRoom", liar))["room_id"]
    await bob.post(f"/join/{false}")
    await bob.post(f"/join/{new}")

    async def told(user_id: UserId, room_id: str) -> tuple[bool, bool, bool, bool]:
        async with accounts.reading() as tx:
            tags = await account_data.find_content(tx, user_id, room_id, "m.tag") or b""
            direct = await account_data.find_content(tx, user_id, "", "m.direct") or b""
            stored = (await push_rules.find_rules(tx, user_id) or b"").decode()
        room_rule = f'"rule_id":"{room_id}","default":false,"enabled":false' in stored
        return b"m.favourite" in tags, room_id.encode() in direct, room_rule, f'"pattern":"{room_id}"' in stored

    assert await told(ALICE, new) == (True, True, True, True)
    await consumer.catch_up()
    assert await told(BOB, new) == (True, True, True, True)
    assert await told(BOB, false) == (False, False, False, False)
    heads = await accounts.fetch("SELECT user_id, head FROM accounts.user_log_heads ORDER BY user_id")
    await accounts.execute("DELETE FROM accounts.consumer_cursors")
    again = RecordConsumer(CONSUMER, consumer.step, consumer.bus, accounts, consumer.shards, consumer.clock)
    await again.catch_up()
    assert await accounts.fetch("SELECT user_id, head FROM accounts.user_log_heads ORDER BY user_id") == heads
