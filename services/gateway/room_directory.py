"""Aliases of rooms and the published directory: the work behind the directory's endpoints.

Spec: C-S API §Room aliases, §Published room directory.
"""

from collections.abc import Mapping
from typing import Any

import orjson
import structlog

from matrixcore.events import load_event
from matrixcore.identifiers import InvalidIdentifier, RoomAlias, RoomId, ServerName, UserId, parse_room_alias, server_of
from matrixcore.power_levels import PowerLevels
from services.gateway.directory_rules import DirectoryRules
from services.gateway.room_access import RoomView, require_joined
from services.gateway.room_changes import RoomChanges, Session
from tessera.commands import NewEvent
from tessera.http.authentication import Requester
from tessera.http.errors import Forbidden, InvalidParam, MatrixError, NotFound
from tessera.room_summaries import refresh_summaries
from tessera.storage import aliases, directory
from tessera.storage.aliases import BoundAlias
from tessera.storage.database import Transaction
from tessera.storage.room_reads.rooms import find_for_reader
from tessera.storage.room_reads.state import find_state, list_state_keys

log = structlog.get_logger(__name__)

MAX_ALT_ALIASES = 100


async def resolve_alias(changes: RoomChanges, server_name: ServerName, alias: RoomAlias) -> BoundAlias:
    """Where an alias leads; an application service may make a room for one of its own.

    Raises:
        NotFound: nowhere, or it belongs to a server that cannot be asked.
        MatrixError: 408, its application service does not answer.
    """
    bound = await _find_alias(changes, server_name, alias)
    if bound is None and changes.bridges is not None and await changes.bridges.make_alias(alias):
        bound = await _find_alias(changes, server_name, alias)
    if bound is None:
        raise NotFound(f"Room alias {alias} not found")
    return bound


async def _find_alias(changes: RoomChanges, server_name: ServerName, alias: RoomAlias) -> BoundAlias | None:
    if server_of(alias) != server_name:
        return None
    async with changes.accounts.reading() as tx:
        return await aliases.find_alias(tx, alias)


def check_owner(changes: RoomChanges, alias: RoomAlias, requester: Requester) -> None:
    """Raise Exclusive where an alias belongs to an application service, and another one or a person asks."""
    if changes.bridges is not None:
        changes.bridges.check_alias(alias, requester.appservice_id)


async def create_alias(
    changes: RoomChanges,
    server_name: ServerName,
    alias: RoomAlias,
    room_id: RoomId,
    user_id: UserId,
    rules: DirectoryRules,
) -> None:
    """Let a new alias of this server lead to a room that the user is joined to.

    Raises:
        MatrixError: the alias is taken (409), or of another server.
        Forbidden: the operator does not let the user make it.
    """
    if server_of(alias) != server_name:
        raise InvalidParam(f"the alias must end with :{server_name}")
    async with changes.shards.of_room(room_id).reading() as tx:
        await require_joined(tx, room_id, user_id)
    rules.check_alias(user_id, room_id, alias)
    async with changes.accounts.transaction() as tx:
        added = await aliases.add_alias(tx, alias, room_id, user_id, now_ms=changes.clock.now_ms())
    if not added:
        raise MatrixError(f"Room alias {alias} already exists", errcode="M_UNKNOWN", status=409)


async def delete_alias(changes: RoomChanges, server_name: ServerName, alias: RoomAlias, session: Session) -> None:
    """Release an alias: its maker may, and whoever may set the room's canonical alias.

    The room's m.room.canonical_alias stops naming it, if the user may change that.

    Raises:
        NotFound: there is no such alias here.
        Forbidden
    """
    bound = await _find_alias(changes, server_name, alias)
    if bound is None:
        raise NotFound(f"Room alias {alias} not found")
    async with changes.shards.of_room(bound.room_id).reading() as tx:
        if bound.creator != session.user_id:
            view = await require_joined(tx, bound.room_id, session.user_id)
            await require_power(tx, view, "m.room.canonical_alias")
        current = await find_state(tx, bound.room_id, "m.room.canonical_alias", "")
    async with changes.accounts.transaction() as tx:
        await aliases.delete_alias(tx, alias, bound.room_id)
    if current is None:
        return
    old = orjson.loads(current.pdu)["content"]
    new = without_alias(old, alias)
    if new != old:
        try:
            await changes.append(bound.room_id, session, NewEvent("m.room.canonical_alias", "", new))
        except MatrixError as error:
            # The maker of an alias need not have the power; the alias is gone all the same.
            log.info("canonical alias kept", room_id=bound.room_id, errcode=error.errcode)


def without_alias(content: Mapping[str, Any], alias: RoomAlias) -> dict[str, Any]:
    """The content of m.room.canonical_alias without one of its aliases."""
    changed = {key: value for key, value in content.items() if key != "alias" or value != alias}
    others = changed.get("alt_aliases")
    if isinstance(others, list):
        changed["alt_aliases"] = [other for other in others if other != alias]
    return changed


async def set_visibility(
    changes: RoomChanges, room_id: RoomId, user_id: UserId, rules: DirectoryRules, *, published: bool, is_admin: bool
) -> None:
    """Publish a room in the directory or take it out: for those who may set its canonical alias.

    Raises:
        NotFound: the room is not known here.
        Forbidden
    """
    async with changes.shards.of_room(room_id).reading() as tx:
        if await find_for_reader(tx, room_id, user_id) is None:
            raise NotFound("This room is not known here")
        if not is_admin:
            view = await require_joined(tx, room_id, user_id)
            await require_power(tx, view, "m.room.canonical_alias")
    if published:
        async with changes.accounts.reading() as tx:
            names = [bound.alias for bound in await aliases.list_aliases(tx, room_id)]
        rules.check_publication(user_id, room_id, names)
    await publish_room(changes, room_id, published=published)


async def publish_room(changes: RoomChanges, room_id: RoomId, *, published: bool) -> None:
    """Publish a room, its line up to date, or take it out. Repeatable."""
    await refresh_summaries(changes.accounts, changes.shards, [room_id])
    async with changes.accounts.transaction() as tx:
        await directory.set_published(tx, room_id, published)


async def require_power(tx: Transaction, view: RoomView, event_type: str) -> None:
    """The user of the view may send state of this type now.

    Raises:
        Forbidden
    """
    room = view.room
    state = await list_state_keys(tx, room.room_id, [("m.room.create", ""), ("m.room.power_levels", "")])
    loaded = {key[0]: load_event(row.pdu, row.event_id, view.rules, room_id=room.room_id) for key, row in state.items()}
    levels = PowerLevels.of(loaded.get("m.room.power_levels"), loaded["m.room.create"])
    if not levels.may_send(view.history.user_id, event_type, is_state=True):
        raise Forbidden("Your power level is not sufficient")


async def check_canonical_alias(changes: RoomChanges, room_id: RoomId, content: Mapping[str, Any]) -> None:
    """New aliases in m.room.canonical_alias must be aliases, and of this room.

    Spec: PUT /rooms/{roomId}/state; what is there already is not asked about.

    Raises:
        InvalidParam: no alias by its grammar.
        MatrixError: it does not lead to the room (400 M_BAD_ALIAS).
    """
    named = _named_aliases(content)
    if not named:
        return
    async with changes.shards.of_room(room_id).reading() as tx:
        current = await find_state(tx, room_id, "m.room.canonical_alias", "")
    old = _named_aliases(orjson.loads(current.pdu)["content"], lenient=True) if current is not None else []
    new = [alias for alias in named if alias not in old]
    try:
        wanted = {parse_room_alias(text) for text in new}
    except InvalidIdentifier as error:
        raise InvalidParam(f"an alias is not valid: {error}") from error
    async with changes.accounts.reading() as tx:
        wanted -= {bound.alias for bound in await aliases.list_aliases(tx, room_id)}
    if wanted:
        raise MatrixError(f"{min(wanted)} does not lead to this room", errcode="M_BAD_ALIAS", status=400)


def _named_aliases(content: Mapping[str, Any], *, lenient: bool = False) -> list[str]:
    alias, others = content.get("alias"), content.get("alt_aliases")
    named = [alias] if alias else []
    named += others if isinstance(others, list) else []
    if lenient:
        return [name for name in named if isinstance(name, str)]
    if (others is not None and not isinstance(others, list)) or not all(isinstance(name, str) for name in named):
        raise InvalidParam("alias must be a string and alt_aliases a list of strings")
    if len(named) > MAX_ALT_ALIASES:
        raise InvalidParam(f"more than {MAX_ALT_ALIASES} aliases")
    return named
