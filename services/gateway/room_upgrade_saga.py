"""The steps of a room's upgrade, from the new room to the settings that its maker takes along.

The debt is a row of the account store. Every step may be done again, by this gateway or another one: the ids of all
commands are made of the row, so that whoever repeats one gets the outcome that is there. The tombstone goes before the
aliases, since the old room may still refuse it.

Spec: C-S API §Room upgrades; DESIGN.md section 2, invariant 8, and section 3.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson
import structlog

from matrixcore.events import Event, load_event
from matrixcore.identifiers import RoomId, StateKey, UserId
from matrixcore.power_levels import PowerLevels, creators_of
from matrixcore.room_versions import ROOM_VERSIONS, RoomVersionRules
from services.gateway.member_profiles import load_profile
from services.gateway.room_changes import RoomChanges
from services.gateway.room_directory import publish_room
from services.gateway.successor_room import (
    CANONICAL_ALIAS,
    COPIED_KEYS,
    CREATE,
    POWER_LEVELS,
    SPACE,
    TOMBSTONE,
    is_sendable,
    moved_alias_content,
    raised_for,
    remaining_alias_content,
    restricted_levels,
    successor_events,
    successor_power_levels,
    tombstone_content,
)
from tessera.clock import Clock
from tessera.commands import Append, CommandBody, CreateRoom, NewEvent
from tessera.http.errors import MatrixError, NotFound
from tessera.storage import aliases, directory, room_upgrades, user_log
from tessera.storage.database import DatabaseUnavailable
from tessera.storage.room_reads.rooms import find_for_reader
from tessera.storage.room_reads.state import list_state_keys
from tessera.storage.room_reads.state_pages import KeyedState, list_member_page, list_state_page
from tessera.storage.room_upgrades import RoomUpgrade, UpgradePhase
from tessera.upgraded_rooms import RoomMove, carry_settings

SWEEP_SECONDS = 15.0
PAGE = 100
PARALLEL = 8
MAX_COPIED = 10_000  # bans, and children of a space

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OldRoom:
    """The state of the upgraded room that its successor is made of."""

    room_id: RoomId
    create: Event
    levels: PowerLevels
    contents: Mapping[StateKey, Mapping[str, Any]]


async def run(changes: RoomChanges, clock: Clock) -> None:
    """Go on every few seconds with what others left unfinished, for ever."""
    while True:
        try:
            await carry_on_all(changes)
        except DatabaseUnavailable:
            log.warning("upgrades of rooms are not readable")
        await clock.sleep(SWEEP_SECONDS)


async def carry_on_all(changes: RoomChanges) -> None:
    """Try every upgrade once that nobody seems to be at, and forget those that were finished a while ago."""
    after = ""
    while True:
        async with changes.accounts.reading() as tx:
            stale = await room_upgrades.list_stale_upgrades(tx, after)
        for upgrade in stale:
            try:
                await carry_on(changes, upgrade)
            except Exception:  # one room being away must not hold up the others
                log.warning("room not upgraded", room_id=upgrade.old_room_id, phase=upgrade.phase, exc_info=True)
        if not stale:
            break
        after = stale[-1].old_room_id
    async with changes.accounts.transaction() as tx:
        await room_upgrades.sweep_upgrades(tx)


async def carry_on(changes: RoomChanges, upgrade: RoomUpgrade) -> None:
    """Bring an upgrade from where it is to its end. Repeatable.

    Raises:
        MatrixError: a room does not take what the upgrade cannot go without, and it is given up; or a room could not
            be asked (503), and it is to be carried on later.
    """
    while (step := _STEPS.get(upgrade.phase)) is not None:
        work, following = step
        try:
            await work(changes, upgrade)
        except MatrixError as error:
            if error.status != 503:
                async with changes.accounts.transaction() as tx:
                    await room_upgrades.drop_upgrade(tx, upgrade)
            raise
        async with changes.accounts.transaction() as tx:
            upgrade = await room_upgrades.advance_upgrade(tx, upgrade, following)


async def load_old_room(changes: RoomChanges, room_id: RoomId) -> OldRoom:
    """The room that is upgraded, as it is now; one query for its state.

    Raises:
        NotFound: it is not known here.
    """
    async with changes.shards.of_room(room_id).reading() as tx:
        found = await find_for_reader(tx, room_id, UserId(""))
        if found is None:
            raise NotFound("This room is not known here")
        state = await list_state_keys(tx, room_id, [CREATE, POWER_LEVELS, CANONICAL_ALIAS, *COPIED_KEYS])
    rules = ROOM_VERSIONS[found.room.room_version]
    events = {key: load_event(row.pdu, row.event_id, rules, room_id=room_id) for key, row in state.items()}
    create = events[CREATE]
    levels = PowerLevels.of(events.get(POWER_LEVELS), create)
    return OldRoom(room_id, create, levels, {key: event.content for key, event in events.items()})


async def _create(changes: RoomChanges, upgrade: RoomUpgrade) -> None:
    old = await load_old_room(changes, upgrade.old_room_id)
    rules = _rules_of(upgrade)
    levels = _new_levels(old, upgrade)
    if not rules.privileged_creators:
        levels = raised_for(levels, upgrade.sender)
    profile = await load_profile(changes.accounts, upgrade.sender)
    events = successor_events(upgrade.sender, profile, levels, old.contents, rules)
    body = CreateRoom(upgrade.new_version, upgrade.create_pdu, events)
    await _submit(changes, upgrade, upgrade.new_room_id, body, "create")


async def _copy(changes: RoomChanges, upgrade: RoomUpgrade) -> None:
    """Bans, and what a space consists of; then the levels are what they were."""
    old = await load_old_room(changes, upgrade.old_room_id)
    rules = _rules_of(upgrade)
    await _copy_pages(changes, upgrade, "m.room.member")
    if old.create.content.get("type") == SPACE:
        await _copy_pages(changes, upgrade, "m.space.child")
    levels = _new_levels(old, upgrade)
    if not rules.privileged_creators and levels != raised_for(levels, upgrade.sender):
        await _append(changes, upgrade, upgrade.new_room_id, NewEvent(*POWER_LEVELS, levels))


async def _bury(changes: RoomChanges, upgrade: RoomUpgrade) -> None:
    event = NewEvent(*TOMBSTONE, tombstone_content(upgrade.new_room_id))
    await _submit(changes, upgrade, upgrade.old_room_id, Append(event), "tombstone")


async def _move_aliases(changes: RoomChanges, upgrade: RoomUpgrade) -> None:
    """Local aliases, the canonical one and the place in the directory go over."""
    old, new = upgrade.old_room_id, upgrade.new_room_id
    canonical = (await load_old_room(changes, old)).contents.get(CANONICAL_ALIAS, {})
    async with changes.accounts.transaction() as tx:
        await aliases.move_aliases(tx, old, new)
        moved = [bound.alias for bound in await aliases.list_aliases(tx, new)]
        published = await directory.is_published(tx, old)
    if published:
        await publish_room(changes, new, published=True)
        await publish_room(changes, old, published=False)
    if there := moved_alias_content(canonical, moved):
        await _append(changes, upgrade, new, NewEvent(*CANONICAL_ALIAS, there))
    left = remaining_alias_content(canonical, moved)
    if left != canonical:
        await _append(changes, upgrade, old, NewEvent(*CANONICAL_ALIAS, left))


async def _restrict(changes: RoomChanges, upgrade: RoomUpgrade) -> None:
    """Only moderators talk and invite in the old room from now on, if the one who upgrades it may decide that."""
    old = await load_old_room(changes, upgrade.old_room_id)
    await _append(changes, upgrade, old.room_id, NewEvent(*POWER_LEVELS, restricted_levels(old.levels)))


async def _carry_settings(changes: RoomChanges, upgrade: RoomUpgrade) -> None:
    """Of the one who upgrades; of others when they join."""
    async with changes.accounts.transaction() as tx:
        heads = await carry_settings(tx, [RoomMove(upgrade.sender, upgrade.old_room_id, upgrade.new_room_id)])
    if heads:
        await changes.fanout.publish_user_wakes(user_log.wakes_of(heads))


_STEPS = {
    UpgradePhase.CREATE: (_create, UpgradePhase.COPY),
    UpgradePhase.COPY: (_copy, UpgradePhase.TOMBSTONE),
    UpgradePhase.TOMBSTONE: (_bury, UpgradePhase.ALIASES),
    UpgradePhase.ALIASES: (_move_aliases, UpgradePhase.RESTRICT),
    UpgradePhase.RESTRICT: (_restrict, UpgradePhase.SETTINGS),
    UpgradePhase.SETTINGS: (_carry_settings, UpgradePhase.DONE),
}


def _rules_of(upgrade: RoomUpgrade) -> RoomVersionRules:
    return ROOM_VERSIONS[upgrade.new_version]


def _new_levels(old: OldRoom, upgrade: RoomUpgrade) -> dict[str, Any]:
    rules = _rules_of(upgrade)
    new_create = load_event(upgrade.create_pdu, old.create.event_id, rules, room_id=upgrade.new_room_id)
    return successor_power_levels(old.levels, rules, creators_of(new_create), upgrade.sender)


async def _copy_pages(changes: RoomChanges, upgrade: RoomUpgrade, event_type: str) -> None:
    """State of one type goes over, some events side by side; what the new room refuses stays behind."""
    places, after, copied = asyncio.Semaphore(PARALLEL), "", 0

    async def copy(event: NewEvent) -> None:
        async with places:
            await _append(changes, upgrade, upgrade.new_room_id, event)

    while copied < MAX_COPIED:
        page = await _page(changes, upgrade.old_room_id, event_type, after)
        if not page:
            return
        await asyncio.gather(*(copy(event) for event in _copies(page, event_type, _rules_of(upgrade))))
        after, copied = page[-1].state_key, copied + len(page)
    log.warning("not all state was copied", room_id=upgrade.old_room_id, type=event_type, copied=copied)


async def _page(changes: RoomChanges, room_id: RoomId, event_type: str, after: str) -> list[KeyedState]:
    async with changes.shards.of_room(room_id).reading() as tx:
        if event_type == "m.room.member":
            return await list_member_page(tx, room_id, "ban", after, PAGE)
        return await list_state_page(tx, room_id, event_type, after, PAGE)


def _copies(page: Sequence[KeyedState], event_type: str, rules: RoomVersionRules) -> list[NewEvent]:
    """The events to send. Of a ban its reason; a child without `via` has been taken out of its space."""
    copies: list[NewEvent] = []
    for state_key, pdu in page:
        content = orjson.loads(pdu)["content"]
        if event_type == "m.room.member":
            content = {key: content[key] for key in ("membership", "reason") if key in content}
        elif not content.get("via"):
            continue
        if is_sendable(content, rules):
            copies.append(NewEvent(event_type, state_key, content))
    return copies


async def _append(changes: RoomChanges, upgrade: RoomUpgrade, room_id: RoomId, event: NewEvent) -> None:
    """Send what the upgrade can go without: a refusal is no failure."""
    try:
        await _submit(changes, upgrade, room_id, Append(event), event.type, event.state_key)
    except MatrixError as error:
        if error.status == 503:
            raise
        log.info("upgrade went on without", room_id=room_id, type=event.type, errcode=error.errcode)


async def _submit(
    changes: RoomChanges, upgrade: RoomUpgrade, room_id: RoomId, body: CommandBody, *name: str | None
) -> None:
    command_id = sha256(orjson.dumps(["upgrade", upgrade.seed.hex(), room_id, *name])).digest()
    await changes.submit(room_id, upgrade.sender, body, command_id=command_id)
