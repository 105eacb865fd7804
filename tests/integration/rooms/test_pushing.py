"""From a room's events to a push gateway, over HTTP. Spec: Push Gateway API; C-S API §Push Notifications."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any

import orjson
import pytest
from aiohttp import web
from seeded_rooms import ALICE, BEGINNING_MS, BOB, CAROL, ROOM, SERVER, SeededRoom

from matrixcore.identifiers import EventId, UserId
from services.push import sending
from services.push.badges import BadgeCounter
from services.push.gateway_client import GatewayClient
from services.push.mails import MailSettings
from services.push.queueing import CONSUMER, PushStep
from services.push.sending import WORK_SECONDS, PushSender
from tessera.bus import LocalRecordBus
from tessera.clock import FakeClock
from tessera.config.accounts import Email
from tessera.consumer_beginnings import begin_at_the_heads
from tessera.ids import IdSource
from tessera.mailing import Mail, MailNotSent
from tessera.record_consumer import RecordConsumer
from tessera.storage import account_data, push_queue, push_rules, pushers, read_positions, user_rooms
from tessera.storage.database import Database
from tessera.storage.pushers import Pusher
from tessera.storage.read_positions import ReadPosition
from tessera.storage.shards import RoomShards
from tessera.storage.user_rooms import MembershipChange

LOOPBACK = (ip_network("127.0.0.0/8"),)


@dataclass
class Gateway:
    """A push gateway: what it was told, and what it answers."""

    url: str = ""
    told: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    answer: Any = field(default_factory=lambda: {"rejected": []})
    headers: dict[str, str] = field(default_factory=dict)

    async def handle(self, request: web.Request) -> web.Response:
        self.told.append((await request.json())["notification"])
        return web.json_response(self.answer, status=self.status, headers=self.headers)

    def events(self) -> list[str]:
        return [one["event_id"] for one in self.told if "event_id" in one]


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    app = web.Application()
    app.router.add_post("/_matrix/push/v1/notify", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/_matrix/push/v1/notify"
    yield made
    await runner.cleanup()


@dataclass
class World:
    """A push service, moved by hand."""

    accounts: Database
    consumer: RecordConsumer
    sender: PushSender
    gateway: Gateway
    wakes: list[None]

    async def push(self) -> int:
        """Queue what is new, and serve who is due."""
        await self.consumer.catch_up()
        return await self.sender.serve_due()

    async def member(self, user_id: UserId, membership: str = "join", position: int = 0) -> None:
        change = MembershipChange(user_id, ROOM, membership, EventId("$m"), user_id, 0, 1, position)
        async with self.accounts.transaction() as tx:
            await user_rooms.apply_changes(tx, [change])

    async def pusher(
        self, user_id: UserId, pushkey: str = "key", *, kind: str = "http", enabled: bool = True, **data: Any
    ) -> None:
        await self.accounts.execute(
            "INSERT INTO accounts.users (user_id, created_ts) VALUES ($1, 0) ON CONFLICT DO NOTHING", user_id
        )
        content = orjson.dumps({"url": self.gateway.url, **data})
        made = Pusher("app", pushkey, kind, "App", "Phone", None, "en", content, enabled)
        async with self.accounts.transaction() as tx:
            await pushers.set_pusher(tx, user_id, "D", made, append=True, now_ms=BEGINNING_MS)

    async def rows(self, table: str) -> int:
        count: int = await self.accounts.fetchval(f"SELECT count(*) FROM accounts.{table}")
        return count

    async def make_due(self) -> None:
        await self.accounts.execute("UPDATE accounts.push_due SET due_at = now() - interval '1 second'")


@pytest.fixture
async def world(accounts: Database, shards: RoomShards, room: SeededRoom, gateway: Gateway) -> AsyncIterator[World]:
    clock = FakeClock(BEGINNING_MS + 60_000)
    client = GatewayClient(blocked=(), allowed=LOOPBACK, connections=4)
    wakes: list[None] = []
    step = PushStep(accounts, shards, clock, SERVER, 0.0, lambda: wakes.append(None))
    consumer = RecordConsumer(CONSUMER, step, LocalRecordBus(), accounts, shards, clock)
    badges = BadgeCounter(accounts, shards, by_room=True)
    sender = PushSender(accounts, shards, clock, IdSource.seeded(1), client, badges, include_content=True)
    made = World(accounts, consumer, sender, gateway, wakes)
    await room.member(BOB, "join", displayname="Bob")
    await made.member(ALICE)
    await made.member(BOB)
    yield made
    await client.close()


async def test_a_message_reaches_the_gateway_with_all_that_belongs_to_it(world: World, room: SeededRoom) -> None:
    await room.add("m.room.name", ALICE, {"name": "Kitchen"}, state_key="")
    await room.add("m.room.canonical_alias", ALICE, {"alias": "#kitchen:here.org"}, state_key="")
    await world.pusher(ALICE, format_of="x")
    await world.pusher(BOB, "bob")
    event = await room.message(BOB, "dinner is ready", **{"m.mentions": {"user_ids": [ALICE]}})
    assert await world.push() == 1
    assert world.gateway.told == [
        {
            "event_id": event.event_id,
            "room_id": ROOM,
            "type": "m.room.message",
            "sender": BOB,
            "sender_display_name": "Bob",
            "room_name": "Kitchen",
            "room_alias": "#kitchen:here.org",
            "user_is_target": False,
            "prio": "high",
            "content": {"msgtype": "m.text", "body": "dinner is ready", "m.mentions": {"user_ids": [ALICE]}},
            "counts": {},
            "devices": [
                {
                    "app_id": "app",
                    "pushkey": "key",
                    "pushkey_ts": BEGINNING_MS // 1_000,
                    "data": {"format_of": "x"},
                    "tweaks": {"sound": "default", "highlight": True},
                }
            ],
        }
    ]
    assert world.wakes == [None]
    assert await world.push() == 0
    assert (await world.rows("push_queue"), await world.rows("push_due")) == (0, 0)


async def test_event_id_only_tells_no_more(world: World, room: SeededRoom) -> None:
    await world.pusher(ALICE, format="event_id_only")
    event = await room.message(BOB, "secret")
    await world.push()
    (told,) = world.gateway.told
    assert told.keys() == {"event_id", "room_id", "counts", "prio", "devices"}
    assert told["event_id"] == event.event_id
    assert told["devices"][0].keys() == {"app_id", "pushkey", "pushkey_ts", "data"}


async def test_a_pusher_that_is_switched_off_is_told_nothing(world: World, room: SeededRoom) -> None:
    await world.pusher(ALICE)
    await world.pusher(BOB, "bob", enabled=False)
    await room.message(BOB, "one")
    await room.message(ALICE, "two")
    await world.consumer.catch_up()
    assert (await world.rows("push_queue"), await world.rows("push_due")) == (1, 1)
    # What waits is forgotten, and does not come when it is on again.
    await world.pusher(ALICE, enabled=False)
    assert (await world.rows("push_queue"), await world.rows("push_due")) == (0, 0)
    await world.pusher(ALICE)
    assert await world.push() == 0
    late = await room.message(BOB, "three")
    assert await world.push() == 1
    assert [told["event_id"] for told in world.gateway.told] == [late.event_id]


async def test_rules_ignores_mentions_and_membership_decide(world: World, room: SeededRoom) -> None:
    await room.member(CAROL, "join", displayname="Carol")
    await world.member(CAROL)
    await world.pusher(ALICE)
    await world.pusher(CAROL, "carol")
    changes = [{"kind": "underride", "rule_id": ".m.rule.message", "enabled": False, "actions": None}]
    own = {
        "override": [
            {
                "rule_id": "name",
                "actions": ["notify", {"set_tweak": "highlight"}],
                "conditions": [{"kind": "contains_display_name"}],
                "enabled": True,
            }
        ]
    }
    async with world.accounts.transaction() as tx:
        await push_rules.set_rules(tx, CAROL, orjson.dumps({"own": own, "changes": changes}))
    plain = await room.message(BOB, "for everybody")
    await room.message(BOB, "quiet", msgtype="m.notice")
    await room.add("m.room.topic", BOB, {"topic": "x"}, state_key="")
    await room.message(ALICE, "her own")
    named = await room.message(BOB, "carol, look")
    mentioned = await room.message(BOB, "you", **{"m.mentions": {"user_ids": [ALICE]}})
    await world.push()
    by_key: dict[str, list[dict[str, Any]]] = {"key": [], "carol": []}
    for told in world.gateway.told:
        by_key[told["devices"][0]["pushkey"]].append(told)
    assert [one["event_id"] for one in by_key["key"]] == [plain.event_id, named.event_id, mentioned.event_id]
    assert [one["prio"] for one in by_key["key"]] == ["low", "low", "high"]
    assert [one["event_id"] for one in by_key["carol"]] == [named.event_id]
    assert by_key["carol"][0]["devices"][0]["tweaks"] == {"highlight": True}
    async with world.accounts.transaction() as tx:
        ignoring = orjson.dumps({"ignored_users": {BOB: {}}})
        await account_data.set_content(tx, ALICE, account_data.GLOBAL, "m.ignored_user_list", ignoring)
    await room.message(BOB, "unheard")
    assert await world.push() == 0


async def test_invites_are_pushed_and_what_came_before_a_join_is_not(world: World, room: SeededRoom) -> None:
    await world.pusher(CAROL)
    invite = await room.member(CAROL, "invite", sender=BOB)
    await world.member(CAROL, membership="invite", position=room.position)
    await room.message(BOB, "while she was invited")
    await world.push()
    assert world.gateway.events() == [invite.event_id]
    assert world.gateway.told[0]["user_is_target"] is True
    assert world.gateway.told[0]["counts"] == {"unread": 1}
    await room.message(BOB, "before the join")
    await room.member(CAROL, "join")
    await world.member(CAROL, position=room.position)
    after = await room.message(BOB, "after it")
    await room.member(CAROL, "join", displayname="Carol")
    await world.member(CAROL, position=room.position)
    await world.push()
    assert world.gateway.events() == [invite.event_id, after.event_id]


async def test_a_gateway_that_fails_is_tried_again_later(world: World, room: SeededRoom) -> None:
    await world.pusher(ALICE)
    world.gateway.status = 502
    first = await room.message(BOB, "one")
    await room.message(BOB, "two")
    assert await world.push() == 1
    assert world.gateway.events() == [first.event_id]  # in order: the second waits for the first
    assert await world.push() == 0
    row = await world.accounts.fetchrow("SELECT attempts, due_at > now() AS later, claimed FROM accounts.push_due")
    assert (row[0], row[1], row[2]) == (1, True, False)
    world.gateway.headers = {"Retry-After": "1000"}
    await world.make_due()
    await world.push()
    waits = await world.accounts.fetchval("SELECT extract(epoch FROM due_at - now())::int FROM accounts.push_due")
    assert 900 < waits <= 1000
    world.gateway.status = 200
    world.gateway.told.clear()
    await world.make_due()
    assert await world.push() == 1
    assert len(world.gateway.events()) == 2
    assert (await world.rows("push_queue"), await world.rows("push_due")) == (0, 0)


async def test_rejected_pushkeys_are_used_no_longer(world: World, room: SeededRoom) -> None:
    await world.pusher(ALICE)
    await world.pusher(ALICE, "other")
    world.gateway.answer = {"rejected": ["key"]}
    await room.message(BOB, "one")
    await room.message(BOB, "two")
    await world.push()
    async with world.accounts.reading() as tx:
        assert [pusher.pushkey for pusher in await pushers.list_pushers(tx, ALICE)] == ["other"]
    assert (await world.rows("push_queue"), await world.rows("push_due")) == (0, 0)


async def test_what_is_read_or_redacted_meanwhile_is_not_sent(world: World, room: SeededRoom) -> None:
    await world.pusher(ALICE)
    read = await room.message(BOB, "read elsewhere")
    anchor = room.position
    redacted = await room.message(BOB, "regretted")
    kept = await room.message(BOB, "kept")
    await world.consumer.catch_up()
    await world.accounts.execute("UPDATE rooms.events SET redacted_by = '$r' WHERE event_id = $1", redacted.event_id)
    async with world.accounts.transaction() as tx:
        receipt = ReadPosition(ALICE, ROOM, "m.read", "", read.event_id, anchor, 0, 1)
        await read_positions.set_positions(tx, [receipt])
    await world.push()
    assert world.gateway.events() == [kept.event_id]


async def test_reading_brings_the_counts_up_to_date(world: World, room: SeededRoom) -> None:
    await world.pusher(ALICE)
    await world.accounts.execute("UPDATE rooms.rooms SET notify_count = 3")
    event = await room.message(BOB, "hello")
    await world.accounts.execute("UPDATE rooms.events SET notify_count = 3 WHERE event_id = $1", event.event_id)
    await world.push()
    assert world.gateway.told[-1]["counts"] == {"unread": 1}
    for receipt_type in ("m.read.private", "m.fully_read"):
        receipt = ReadPosition(ALICE, ROOM, receipt_type, "", event.event_id, room.position, 0, 1)
        async with world.accounts.transaction() as tx:
            await read_positions.set_positions(tx, [receipt])
        await world.push()
    assert [one.get("event_id") for one in world.gateway.told] == [event.event_id, None]
    assert world.gateway.told[-1]["counts"] == {}
    assert world.gateway.told[-1].keys() == {"counts", "devices"}


async def test_networks_that_are_closed_are_not_called(world: World, room: SeededRoom) -> None:
    client = GatewayClient(blocked=LOOPBACK, allowed=(), connections=1)
    world.sender.client, allowed = client, world.sender.client
    await world.pusher(ALICE)
    event = await room.message(BOB, "hello")
    try:
        assert await world.push() == 1
    finally:
        await client.close()
    assert world.gateway.told == []
    world.sender.client = allowed
    await world.make_due()
    await world.push()
    assert world.gateway.events() == [event.event_id]


async def test_a_service_that_starts_for_the_first_time_pushes_nothing_old(
    world: World, room: SeededRoom, shards: RoomShards
) -> None:
    await world.pusher(ALICE)
    await room.message(BOB, "long ago")
    await begin_at_the_heads(world.accounts, shards, CONSUMER)
    await begin_at_the_heads(world.accounts, shards, CONSUMER)
    new = await room.message(BOB, "new")
    await world.push()
    assert world.gateway.events() == [new.event_id]


async def test_two_senders_never_have_one_pusher_at_once(world: World, room: SeededRoom) -> None:
    await world.pusher(ALICE)
    await room.message(BOB, "one")
    await world.consumer.catch_up()
    assert sorted(await asyncio.gather(world.sender.serve_due(), world.sender.serve_due())) == [0, 1]
    assert len(world.gateway.told) == 1


async def test_what_comes_while_the_last_is_sent_is_not_forgotten(world: World, room: SeededRoom) -> None:
    await world.pusher(ALICE)
    await room.message(BOB, "one")
    await world.consumer.catch_up()
    handle = world.gateway.handle
    answered = []

    async def meanwhile() -> None:
        await room.message(BOB, "two")
        await world.consumer.catch_up()

    original = world.sender.client.notify

    async def notify(url: str, notification: dict[str, Any]) -> list[str]:
        if not answered:
            answered.append(handle)
            await meanwhile()
        return await original(url, notification)

    world.sender.client.notify = notify  # type: ignore[method-assign]
    assert await world.sender.serve_due() == 1
    assert await world.sender.serve_due() == 1
    assert [one["content"]["body"] for one in world.gateway.told] == ["one", "two"]
    assert await world.rows("push_due") == 0


class MailBox:
    """A mail server that keeps what it is given, or takes nothing."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.is_away = False
        self.is_silent = False

    async def send(self, mail: Mail) -> None:
        if self.is_silent:
            await asyncio.Event().wait()
        if self.is_away:
            raise MailNotSent("away")
        self.mails.append(mail)


@pytest.fixture
def mail_box(world: World) -> MailBox:
    """The world with mail, which goes out after ten minutes."""
    made = MailBox()
    email = Email(notif_from="chat@here.org", app_name="Chat", client_base_url="https://chat.here.org")
    world.sender.mails = MailSettings(made, email, include_content=True)
    step = world.consumer.step
    assert isinstance(step, PushStep)
    world.consumer.step = replace(step, mail_delay_seconds=world.sender.mails.delay_seconds)
    return made


async def test_a_mail_gathers_what_is_unread_for_a_while(world: World, room: SeededRoom, mail_box: MailBox) -> None:
    await room.add("m.room.name", ALICE, {"name": "Kitchen\r\nX: y"}, state_key="")
    await world.pusher(ALICE, "alice@here.org", kind="email")
    await room.message(BOB, "one")
    await room.message(BOB, "<b>two</b>")
    assert await world.push() == 0
    seconds = await world.accounts.fetchval("SELECT extract(epoch FROM due_at - now()) FROM accounts.push_due")
    assert 590 < seconds <= 600
    await world.make_due()
    assert await world.push() == 1
    (mail,) = mail_box.mails
    assert (mail.to, mail.subject) == ("alice@here.org", "[Chat] You have messages in Kitchen  X: y")
    assert "Bob: one" in mail.text
    assert "https://chat.here.org/#/room/!" in mail.text
    assert "&lt;b&gt;two&lt;/b&gt;" in mail.html
    assert (await world.rows("push_queue"), await world.rows("push_due")) == (0, 0)
    # The next one has time.
    await room.message(BOB, "three")
    await world.push()
    seconds = await world.accounts.fetchval("SELECT extract(epoch FROM due_at - now()) FROM accounts.push_due")
    assert 3_500 < seconds <= 3_600


async def test_what_was_read_before_the_mail_needs_none(world: World, room: SeededRoom, mail_box: MailBox) -> None:
    await world.pusher(ALICE, "alice@here.org", kind="email")
    read = await room.message(BOB, "one")
    receipt = ReadPosition(ALICE, ROOM, "m.read", "", read.event_id, room.position, 0, 1)
    async with world.accounts.transaction() as tx:
        await read_positions.set_positions(tx, [receipt])
    await world.consumer.catch_up()
    await world.make_due()
    assert await world.push() == 1
    assert mail_box.mails == []
    assert (await world.rows("push_queue"), await world.rows("push_due")) == (0, 0)


async def test_a_mail_server_that_is_away_is_tried_again(world: World, room: SeededRoom, mail_box: MailBox) -> None:
    await world.pusher(ALICE, "alice@here.org", kind="email")
    await room.message(BOB, "one")
    await world.consumer.catch_up()
    mail_box.is_away = True
    await world.make_due()
    await world.push()
    assert (await world.rows("push_queue"), await world.rows("push_due")) == (1, 1)
    mail_box.is_away = False
    await world.make_due()
    await world.push()
    assert len(mail_box.mails) == 1


async def test_a_mail_server_that_says_nothing_is_given_up_before_the_claim_on_the_pusher_ends(
    world: World, room: SeededRoom, mail_box: MailBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert WORK_SECONDS < push_queue.CLAIM_SECONDS
    monkeypatch.setattr(sending, "WORK_SECONDS", 0.01)
    await world.pusher(ALICE, "alice@here.org", kind="email")
    await room.message(BOB, "one")
    await world.consumer.catch_up()
    mail_box.is_silent = True
    await world.make_due()
    assert await world.push() == 1
    assert await world.accounts.fetchval("SELECT attempts FROM accounts.push_due WHERE NOT claimed") == 1
    mail_box.is_silent = False
    await world.make_due()
    await world.push()
    assert len(mail_box.mails) == 1


async def test_nothing_gathers_without_end_nor_where_there_is_no_mail(
    world: World, room: SeededRoom, mail_box: MailBox
) -> None:
    await world.pusher(ALICE, "alice@here.org", kind="email")
    for number in range(3):
        await room.message(BOB, f"number {number}")
        await world.consumer.catch_up()
    assert await world.rows("push_queue") == 3
    await world.accounts.execute("DELETE FROM accounts.push_queue")
    await world.accounts.execute(
        "INSERT INTO accounts.push_queue (user_id, app_id, pushkey, room_id, event_id, tweaks) "
        "SELECT $1, 'app', 'alice@here.org', $2, '$' || n, '{}' FROM generate_series(1, $3) n",
        ALICE,
        ROOM,
        push_queue.MAX_QUEUED,
    )
    await room.message(BOB, "too much")
    await world.consumer.catch_up()
    assert await world.rows("push_queue") == push_queue.MAX_QUEUED
    world.sender.mails = None
    await world.make_due()
    await world.push()
    assert (await world.rows("push_queue"), await world.rows("push_due"), mail_box.mails) == (0, 0, [])
