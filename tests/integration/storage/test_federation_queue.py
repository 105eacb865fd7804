"""The queues of what other servers are to be sent: nothing is overlooked, and a dead server costs little."""

import asyncio

from matrixcore.identifiers import EventId, RoomId, ServerName
from tessera.storage import federation_destinations as destinations
from tessera.storage import federation_queue as queue
from tessera.storage.database import Database
from tessera.storage.federation_destinations import Failure, NewTransaction
from tessera.storage.federation_queue import Lane, NewEdu, NewPdu, bucket_of

A, B = ServerName("a.example"), ServerName("b.example")
ROOM, OTHER = RoomId("!room:x"), RoomId("!other:x")
BUCKETS = 8
ALL = range(BUCKETS)


def _pdu(destination: ServerName, number: int, room: RoomId = ROOM) -> NewPdu:
    return NewPdu(destination, room, EventId(f"$event{number}"))


async def _add(accounts: Database, *pdus: NewPdu) -> None:
    async with accounts.transaction() as tx:
        await queue.add_pdus(tx, pdus, BUCKETS)


async def _due(accounts: Database) -> list[ServerName]:
    async with accounts.reading() as tx:
        return [one.destination for one in await destinations.list_due(tx, ALL, [], 10, 10, 10)]


async def _waiting(accounts: Database, destination: ServerName) -> list[str]:
    async with accounts.reading() as tx:
        return [pdu.event_id for pdu in (await queue.list_pdus(tx, [destination])).get(destination, [])]


async def _persist(accounts: Database, destination: ServerName, txn_id: str) -> None:
    async with accounts.transaction() as tx:
        pdus = (await queue.list_pdus(tx, [destination])).get(destination, [])
        edus = (await queue.list_edus(tx, [destination])).get(destination, [])
        new = NewTransaction(destination, txn_id, b"{}", tuple(pdu.seq for pdu in pdus), tuple(edu.seq for edu in edus))
        assert await destinations.persist(tx, [new]) == {destination}


async def _fail(accounts: Database, destination: ServerName, pause: float = 0) -> None:
    async with accounts.transaction() as tx:
        await destinations.fail(tx, [Failure(destination, "no answer", pause)])


async def test_each_destination_has_its_own_queue_in_order(accounts: Database) -> None:
    await _add(accounts, _pdu(A, 1), _pdu(B, 1), _pdu(A, 2))
    assert sorted(await _due(accounts)) == [A, B]
    assert await _waiting(accounts, A) == ["$event1", "$event2"]
    await _persist(accounts, A, "t1")
    await _add(accounts, _pdu(A, 3))
    async with accounts.transaction() as tx:
        assert await destinations.settle(tx, [(A, "t1")]) == [A]
    assert await _waiting(accounts, A) == ["$event3"]
    assert await _waiting(accounts, B) == ["$event1"]


async def test_what_is_sent_is_kept_with_its_id_and_bytes_until_it_is_taken(accounts: Database) -> None:
    await _add(accounts, _pdu(A, 1))
    await _persist(accounts, A, "t1")
    async with accounts.transaction() as tx:
        assert await destinations.persist(tx, [NewTransaction(A, "t2", b"{}", (), ())]) == set()
        (due,) = await destinations.list_due(tx, ALL, [], 10, 10, 10)
        assert (due.txn_id, due.txn_body) == ("t1", b"{}")
        assert await destinations.settle(tx, [(A, "another")]) == []
    assert await _waiting(accounts, A) == ["$event1"]
    async with accounts.transaction() as tx:
        assert await destinations.settle(tx, [(A, "t1")]) == []
    assert await _due(accounts) == []
    assert await _waiting(accounts, A) == []


async def test_a_destination_that_fails_waits_and_then_gets_rooms_not_events(accounts: Database) -> None:
    await _add(accounts, _pdu(A, 1))
    await _persist(accounts, A, "t1")
    await _add(accounts, _pdu(A, 2), _pdu(A, 3, OTHER))
    await _fail(accounts, A)
    assert await _waiting(accounts, A) == ["$event1", "$event2", "$event3"], "once is no outage"
    await _fail(accounts, A, pause=3600)
    assert await _due(accounts) == []
    assert await _waiting(accounts, A) == ["$event1"], "only what the transaction under way carries"
    for number in range(4, 30):
        await _add(accounts, _pdu(A, number))
    async with accounts.transaction() as tx:
        assert await destinations.count_rows(tx, A) == (1, 0, 2)
        status = await destinations.find_status(tx, A)
        assert status is not None
        assert (status.failures, status.catching_up, status.last_error) == (2, True, "no answer")
        assert sorted(await queue.take_marks(tx, A, 50)) == [OTHER, ROOM]
        assert await destinations.settle(tx, [(A, "t1")]) == []
        status = await destinations.find_status(tx, A)
    assert status is not None
    assert (status.failures, status.catching_up, status.pending) == (0, False, False)


async def test_a_destination_that_shows_life_is_tried_at_once(accounts: Database) -> None:
    await _add(accounts, _pdu(A, 1))
    await _fail(accounts, A, pause=3600)
    async with accounts.transaction() as tx:
        await tx.execute("UPDATE accounts.federation_destinations SET last_attempt = now() - interval '1 minute'")
        assert await destinations.note_life(tx, A)
        assert not await destinations.note_life(tx, B)
    assert await _due(accounts) == [A]


async def test_one_that_was_tried_a_moment_before_it_shows_life_is_tried_in_a_moment(accounts: Database) -> None:
    await _add(accounts, _pdu(A, 1))
    await _fail(accounts, A, pause=3600)
    async with accounts.transaction() as tx:
        assert await destinations.note_life(tx, A)
        assert not await destinations.note_life(tx, A), "it is going to be"
        status = await destinations.find_status(tx, A)
    assert await _due(accounts) == []
    assert status is not None
    assert status.last_attempt is not None
    assert (status.due_at - status.last_attempt).total_seconds() == 5


async def test_edus_go_out_by_lane_and_a_silent_destination_gets_the_newest_of_a_subject(accounts: Database) -> None:
    receipt, key, message = (NewEdu(A, lane, lane.name.encode(), "x") for lane in reversed(Lane))

    async def add(*edus: NewEdu) -> list[bytes]:
        async with accounts.transaction() as tx:
            await queue.add_edus(tx, edus, BUCKETS)
            return [edu.edu for edu in (await queue.list_edus(tx, [A])).get(A, [])]

    assert await add(receipt, key, message) == [b"TO_DEVICE", b"KEYS", b"RECEIPTS"]
    await _fail(accounts, A)
    await _fail(accounts, A)
    assert await add(receipt) == [b"TO_DEVICE", b"KEYS"]
    await add(key._replace(edu=b"1"), key._replace(edu=b"other", subject="y"))
    assert await add(key._replace(edu=b"2"), message) == [b"TO_DEVICE", b"TO_DEVICE", b"KEYS", b"other", b"2"]


async def test_a_row_that_comes_while_a_queue_is_settled_is_not_overlooked(accounts: Database) -> None:
    for number in range(20):
        await _add(accounts, _pdu(A, number))
        await _persist(accounts, A, f"t{number}")

        async def settle(number: int = number) -> None:
            async with accounts.transaction() as tx:
                await destinations.settle(tx, [(A, f"t{number}")])

        await asyncio.gather(settle(), _add(accounts, _pdu(A, 1000 + number)), _add(accounts, _pdu(B, number)))
        assert A in await _due(accounts)
        await _persist(accounts, A, f"u{number}")
        async with accounts.transaction() as tx:
            await destinations.settle(tx, [(A, f"u{number}")])
        assert A not in await _due(accounts)


async def test_a_long_queue_of_a_destination_that_answers_becomes_rooms(accounts: Database) -> None:
    await _add(accounts, *(_pdu(A, number) for number in range(destinations.MAX_BACKLOG + 1)))
    async with accounts.transaction() as tx:
        await destinations.shorten_backlogs(tx, [A, B])
        assert await destinations.count_rows(tx, A) == (0, 0, 1)


async def test_buckets_divide_the_destinations(accounts: Database) -> None:
    await _add(accounts, _pdu(A, 1), _pdu(B, 1))
    async with accounts.reading() as tx:
        for name in (A, B):
            due = await destinations.list_due(tx, [bucket_of(name, BUCKETS)], [], 10, 10, 10)
            assert name in [one.destination for one in due]
            assert not await destinations.list_due(tx, [bucket_of(name, BUCKETS)], [A, B], 10, 10, 10)
        figures = await destinations.measure(tx, ALL)
    assert (figures.pending, figures.known, figures.failing) == (2, 2, 0)
