"""Aliases (reserved, bound, released) and the published directory."""

from dataclasses import replace

import pytest

from matrixcore.identifiers import RoomAlias, RoomId, UserId
from tessera.storage import aliases, directory
from tessera.storage.database import Database
from tessera.storage.directory import RoomSummary

ALICE, BOB = UserId("@alice:x"), UserId("@bob:x")
ALIAS, ROOM = RoomAlias("#room:x"), RoomId("!room:x")


async def test_a_reservation_holds_the_name_until_it_is_bound(accounts: Database) -> None:
    async with accounts.reading() as tx:
        assert await aliases.reserve(tx, ALIAS, ALICE, until_ts=100, now_ms=1)
        assert not await aliases.reserve(tx, ALIAS, BOB, until_ts=100, now_ms=50)
        assert not await aliases.add_alias(tx, ALIAS, ROOM, BOB, now_ms=50)
        assert await aliases.find_alias(tx, ALIAS) is None
        assert await aliases.bind(tx, ALIAS, ALICE, ROOM)
        assert await aliases.bind(tx, ALIAS, ALICE, ROOM)
        assert not await aliases.bind(tx, ALIAS, ALICE, RoomId("!other:x"))
        assert not await aliases.reserve(tx, ALIAS, BOB, until_ts=300, now_ms=200)
        found = await aliases.find_alias(tx, ALIAS)
        assert found is not None
        assert (found.room_id, found.creator) == (ROOM, ALICE)


async def test_a_reservation_is_given_up_or_lapses(accounts: Database) -> None:
    async with accounts.reading() as tx:
        await aliases.reserve(tx, ALIAS, ALICE, until_ts=100, now_ms=1)
        await aliases.release(tx, ALIAS, BOB)
        assert not await aliases.reserve(tx, ALIAS, BOB, until_ts=100, now_ms=2)
        await aliases.release(tx, ALIAS, ALICE)
        assert await aliases.reserve(tx, ALIAS, BOB, until_ts=100, now_ms=2)
        assert await aliases.reserve(tx, ALIAS, ALICE, until_ts=300, now_ms=100)
        assert not await aliases.bind(tx, ALIAS, BOB, ROOM)
        assert await aliases.add_alias(tx, ALIAS, ROOM, BOB, now_ms=301)


async def test_aliases_of_a_room_are_listed_moved_and_deleted(accounts: Database) -> None:
    new_room = RoomId("!new:x")
    async with accounts.reading() as tx:
        for name in ("#b:x", "#a:x"):
            assert await aliases.add_alias(tx, RoomAlias(name), ROOM, ALICE, now_ms=1)
        assert [alias.alias for alias in await aliases.list_aliases(tx, ROOM)] == ["#a:x", "#b:x"]
        assert sorted(await aliases.move_aliases(tx, ROOM, new_room)) == ["#a:x", "#b:x"]
        assert not await aliases.delete_alias(tx, RoomAlias("#a:x"), ROOM)
        assert await aliases.delete_alias(tx, RoomAlias("#a:x"), new_room)
        assert [alias.alias for alias in await aliases.list_aliases(tx, new_room)] == ["#b:x"]


SUMMARY = RoomSummary(ROOM, 1, 1, "Name", "Topic", None, None, None, "public", False, False, None, "12", 5)


@pytest.fixture
async def published(accounts: Database) -> Database:
    """Five published rooms of 1 to 5 members, the last a space; and one that is not published."""
    summaries = [
        replace(
            SUMMARY,
            room_id=RoomId(f"!r{size}:x"),
            joined_members=size,
            name=f"Room_{size}",
            room_type="m.space" if size == 5 else None,
        )
        for size in range(1, 7)
    ]
    async with accounts.transaction() as tx:
        await directory.set_summaries(tx, summaries)
        for size in range(1, 6):
            await directory.set_published(tx, RoomId(f"!r{size}:x"), True)
    return accounts


async def test_pages_go_both_ways(published: Database) -> None:
    async with published.reading() as tx:
        first = await directory.list_published(tx, limit=2)
        assert [room.joined_members for room in first] == [5, 4]
        last = first[-1]
        second = await directory.list_published(tx, after=(last.joined_members, last.room_id), limit=2)
        assert [room.joined_members for room in second] == [3, 2]
        before = (second[0].joined_members, second[0].room_id)
        assert await directory.list_published(tx, before=before, limit=2) == first
        assert await directory.count_published(tx) == 5


async def test_the_directory_is_searched_and_filtered_by_type(published: Database) -> None:
    async with published.reading() as tx:
        found = await directory.list_published(tx, search_term="ROOM_3", limit=9)
        assert [room.room_id for room in found] == ["!r3:x"]
        assert await directory.list_published(tx, search_term="room%", limit=9) == []
        spaces = await directory.list_published(tx, room_types=["m.space"], limit=9)
        assert [room.room_id for room in spaces] == ["!r5:x"]
        assert await directory.count_published(tx, room_types=[None]) == 4
        assert len(await directory.list_published(tx, room_types=[None, "m.space"], limit=9)) == 5


async def test_networks_have_lists_of_their_own(published: Database) -> None:
    hidden, shown = RoomId("!r6:x"), RoomId("!r2:x")
    async with published.transaction() as tx:
        for room_id in (hidden, shown, shown):
            await directory.set_in_network(tx, "irc|main", room_id, True)
        listed = await directory.list_published(tx, network="irc|main", limit=9)
        assert [room.room_id for room in listed] == [hidden, shown]
        found = await directory.list_published(tx, network="irc|main", search_term="room_2", limit=9)
        assert [room.room_id for room in found] == [shown]
        assert await directory.list_published(tx, network="irc|other", limit=9) == []
        assert await directory.count_published(tx, network=None) == 6
        assert await directory.count_published(tx) == 5
        await directory.set_in_network(tx, "irc|main", hidden, False)
        assert await directory.count_published(tx, network="irc|main") == 1


async def test_a_summary_yields_to_a_later_one_only_and_publishing_is_apart(accounts: Database) -> None:
    async with accounts.transaction() as tx:
        await directory.set_published(tx, ROOM, True)
        await directory.set_summaries(tx, [replace(SUMMARY, position=5, name="five"), replace(SUMMARY, position=4)])
        await directory.set_summaries(tx, [replace(SUMMARY, position=3, name="three")])
        assert [room.name for room in await directory.list_published(tx, limit=9)] == ["five"]
        await directory.set_summaries(tx, [replace(SUMMARY, incarnation=2, position=1, name="restored")])
        assert [room.name for room in await directory.list_published(tx, limit=9)] == ["restored"]
        await directory.set_published(tx, ROOM, False)
        assert not await directory.is_published(tx, ROOM)
        assert await directory.list_published(tx, limit=9) == []
