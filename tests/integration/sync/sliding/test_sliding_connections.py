"""What is kept of clients' connections, and what is forgotten. Spec: MSC4186 §Connections."""

import itertools
import zlib

import orjson
import pytest

from matrixcore.identifiers import RoomId, UserId
from services.sync.sliding.connections import Connections, UnknownPos
from services.sync.sliding.required_state import Element, from_include
from services.sync.sliding.sent_rooms import NOTHING_SENT, SentRoom, Told
from services.sync.sliding.told_codec import decode_sent, encode_sent
from tessera.storage import device_keys
from tessera.storage.database import Database
from tessera.storage.sliding_connections import MAX_ANSWERS, MAX_PER_DEVICE, ConnectionKey
from tessera.sync_token import Point, SyncToken, component_for

ANN = UserId("@ann:here.org")
MAIN = ConnectionKey(ANN, "D", "main")
TOKEN = SyncToken({3: Point(1, 17)}, 5)
ROOM = RoomId("!a:here.org")
ROOMS = NOTHING_SENT.set(ROOM, SentRoom("join", 4))
NEW = Told(None, NOTHING_SENT)

_numbers = itertools.count()


def process(accounts: Database) -> Connections:
    """The connections of one more process."""
    return Connections(accounts, lambda: f"n{next(_numbers)}")


@pytest.fixture
def connections(accounts: Database) -> Connections:
    return process(accounts)


async def begun(connections: Connections, key: ConnectionKey = MAIN) -> str:
    """The first pos of a new connection."""
    return await connections.keep(connections.begin(key), NEW, ROOMS, TOKEN)


def test_what_was_told_is_kept_as_it_is() -> None:
    wish = from_include([Element("m.room.name", ""), Element(None, None)], [Element("m.x", None)], lazy_members=True)
    told = NOTHING_SENT.update(
        {
            RoomId("!a:b"): SentRoom("join", 1, None, 20, wish, is_dm=True, has_data=False, has_receipts=True),
            RoomId("!b:b"): SentRoom("join", 2, Point(3, 4), 1, wish, is_dm=False, has_data=True),
            RoomId("!c:b"): SentRoom("invite", 9),
        }
    )
    assert decode_sent(encode_sent(told)) == told
    assert decode_sent(encode_sent(NOTHING_SENT)) == NOTHING_SENT


def test_what_is_excluded_is_written_once() -> None:
    included = [Element(f"m.{number}", None) for number in range(200)]
    excluded = [Element("m.x" * 80, f"{number:0255}") for number in range(200)]
    told = ROOMS.set(ROOM, SentRoom("join", 1, wish=from_include(included, excluded)))
    unpacked = zlib.decompress(encode_sent(told))
    assert len(unpacked) < 2 * 200 * 600
    assert decode_sent(encode_sent(told)) == told


async def test_what_cannot_be_read_begins_anew(connections: Connections, accounts: Database) -> None:
    old = {"wishes": [[[["m.room.name", "", [], False]], False]], "rooms": {ROOM: ["join", 4, None, 1, 0, 0]}}
    for told in (b"no zlib", zlib.compress(b'{"rooms":'), zlib.compress(orjson.dumps(old))):
        pos = await begun(connections)
        await accounts.execute("UPDATE accounts.sliding_connections SET told = $1", told)
        with pytest.raises(UnknownPos):
            await process(accounts).find(MAIN, pos)


async def test_a_pos_leads_back_to_what_was_told_in_any_process(connections: Connections, accounts: Database) -> None:
    pos = await begun(connections)
    for one in (connections, process(accounts)):
        _, told = await one.find(MAIN, pos)
        assert (told.token, told.rooms) == (TOKEN, ROOMS)
    assert component_for(pos, 3) == 17  # a pos is a sync token for /messages and /relations


@pytest.mark.parametrize(
    "key",
    [
        ConnectionKey(UserId("@eve:here.org"), "D", "main"),
        ConnectionKey(ANN, "E", "main"),
        ConnectionKey(ANN, "D", "other"),
    ],
)
async def test_a_pos_of_somebody_else_is_unknown(connections: Connections, key: ConnectionKey) -> None:
    pos = await begun(connections)
    with pytest.raises(UnknownPos):
        await connections.find(key, pos)


@pytest.mark.parametrize("pos", ["", "s1", "x.n0-1", "s1AAAA.n0-1", "s1AAAA", "nonsense.n0-1", "s1.n0-" + "9" * 40])
async def test_nonsense_is_unknown(connections: Connections, pos: str) -> None:
    await begun(connections)
    with pytest.raises(UnknownPos):
        await connections.find(MAIN, pos)


@pytest.mark.parametrize("is_elsewhere", [False, True])
async def test_the_last_pos_stays_until_the_next_is_used(
    connections: Connections, accounts: Database, is_elsewhere: bool
) -> None:
    first = await begun(connections)
    connection, told = await connections.find(MAIN, first)
    answers = [
        await connections.keep(connection, told, ROOMS.set(RoomId(f"!{number}:b"), SentRoom("join", 1)), TOKEN)
        for number in range(MAX_ANSWERS + 1)
    ]

    def asked() -> Connections:
        return process(accounts) if is_elsewhere else connections

    assert len(set(answers)) == MAX_ANSWERS + 1
    assert (await asked().find(MAIN, first))[1].rooms == ROOMS
    with pytest.raises(UnknownPos):
        await asked().find(MAIN, answers[0])
    other = asked()
    connection, told = await other.find(MAIN, answers[-1])
    assert len(told.rooms) == 2
    await other.keep(connection, told, told.rooms.set(ROOM, SentRoom("leave", 9)), TOKEN)
    with pytest.raises(UnknownPos):
        await asked().find(MAIN, first)
    assert len((await asked().find(MAIN, answers[-1]))[1].rooms) == 2


async def test_an_answer_that_tells_nothing_new_is_not_written(connections: Connections, accounts: Database) -> None:
    first = await begun(connections)
    connection, told = await connections.find(MAIN, first)
    async with accounts.counting() as count:
        second = await connections.keep(connection, told, told.rooms, TOKEN._replace(user=6))
        await connections.find(MAIN, second)
    assert count.statements == 0
    assert first != second
    await connections.find(MAIN, first)


async def test_a_connection_that_begins_ends_its_namesake(connections: Connections, accounts: Database) -> None:
    first = await begun(connections)
    late = connections.begin(MAIN)
    second = await begun(connections)
    with pytest.raises(UnknownPos):
        await connections.find(MAIN, first)
    with pytest.raises(UnknownPos):  # the answer to a request that its client has given up
        await connections.keep(late, NEW, ROOMS, TOKEN)
    await process(accounts).find(MAIN, second)


async def test_a_device_has_a_few_connections(connections: Connections, accounts: Database) -> None:
    keys = [ConnectionKey(ANN, "D", str(number)) for number in range(MAX_PER_DEVICE + 1)]
    kept = [await begun(connections, key) for key in keys]
    assert len(connections) == MAX_PER_DEVICE
    for asked in (connections, process(accounts)):
        with pytest.raises(UnknownPos):
            await asked.find(keys[0], kept[0])
        await asked.find(keys[1], kept[1])


async def test_memory_is_bounded_and_the_store_has_the_rest(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.sync.sliding.connections.MAX_ROOMS", 3)
    keys = [ConnectionKey(ANN, device, "") for device in "DE"]
    kept = [await begun(connections, key) for key in keys]
    assert len(connections) == 1
    for key, pos in zip(keys, kept, strict=True):
        assert (await connections.find(key, pos))[1].rooms == ROOMS


async def test_a_device_that_is_gone_takes_its_connections_along(connections: Connections, accounts: Database) -> None:
    pos = await begun(connections)
    async with accounts.transaction() as tx:
        await device_keys.delete_device_data(tx, ANN, ["D"])
    with pytest.raises(UnknownPos):
        await process(accounts).find(MAIN, pos)
