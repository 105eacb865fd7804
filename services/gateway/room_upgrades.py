"""POST /rooms/{roomId}/upgrade. Spec: C-S API §Room upgrades."""

from typing import Any

from starlette.responses import Response

from matrixcore.identifiers import InvalidIdentifier, RoomId, UserId, parse_user_id
from matrixcore.room_versions import ROOM_VERSIONS, RoomVersionRules
from services.gateway.dependencies import GatewayDep
from services.gateway.path_identifiers import room_id_of
from services.gateway.room_access import refuse_guest, require_joined
from services.gateway.room_creation import RoomMaker
from services.gateway.room_directory import require_power
from services.gateway.room_upgrade_saga import carry_on, load_old_room
from services.gateway.routing import CurrentRequester, JsonObject, client_router
from services.gateway.successor_room import TOMBSTONE, successor_create_content
from tessera.http.errors import BadJson, InvalidParam, MatrixError, MissingParam, UnsupportedRoomVersion
from tessera.http.replies import json_reply
from tessera.storage import room_upgrades
from tessera.storage.room_reads.state_pages import find_last_event
from tessera.storage.room_reads.successions import list_successors
from tessera.storage.room_upgrades import RoomUpgrade

router = client_router()

MAX_ADDITIONAL_CREATORS = 100
SEED_BYTES = 16


@router.post("/rooms/{room_id}/upgrade")
async def upgrade_room(room_id: str, body: JsonObject, requester: CurrentRequester, gateway: GatewayDep) -> Response:
    """Put a room of another version in a room's place; the same request again goes on where the first one was."""
    refuse_guest(requester)
    old = room_id_of(room_id)
    rules = _version_of(body)
    creators = _creators_of(body) if rules.privileged_creators else ()
    gateway.limits.check("rc_room_creation", requester.user_id)
    changes = gateway.rooms
    async with changes.shards.of_room(old).reading() as tx:
        view = await require_joined(tx, old, requester.user_id)
        await require_power(tx, view, TOMBSTONE[0])
    upgrade = await begin_upgrade(gateway.room_maker, old, requester.user_id, rules, creators)
    await carry_on(changes, upgrade)
    return json_reply({"replacement_room": upgrade.new_room_id})


async def begin_upgrade(
    maker: RoomMaker, old: RoomId, sender: UserId, rules: RoomVersionRules, creators: tuple[UserId, ...]
) -> RoomUpgrade:
    """Note the upgrade, or find the one that the same request began.

    Raises:
        MatrixError: the room is being upgraded by another request (409).
    """
    changes = maker.changes
    old_room = await load_old_room(changes, old)
    async with changes.shards.of_room(old).reading() as tx:
        last = await find_last_event(tx, old)
        successor = (await list_successors(tx, [old])).get(old)
    content = successor_create_content(old_room.create, rules, sender, additional_creators=creators, last_event_id=last)
    create = maker.build_create_event(sender, rules, content, changes.clock.now_ms())
    seed = changes.ids.random_bytes(SEED_BYTES)
    wanted = RoomUpgrade(old, sender, rules.version, creators, create.room_id, seed, create.pdu)
    async with changes.accounts.transaction() as tx:
        found = await room_upgrades.find_upgrade(tx, old)
        if found is not None and found.is_same_request(wanted) and _goes_on(found, successor):
            return found
        if await room_upgrades.add_upgrade(tx, wanted):
            return wanted
        found = await room_upgrades.find_upgrade(tx, old)
    if found is not None and found.is_same_request(wanted):
        return found
    raise MatrixError("The room is being upgraded already", errcode="M_UNKNOWN", status=409)


def _goes_on(upgrade: RoomUpgrade, successor: RoomId | None) -> bool:
    """Whether the upgrade is under way, or finished and still where the room leads."""
    return upgrade.phase is not room_upgrades.UpgradePhase.DONE or successor == upgrade.new_room_id


def _version_of(body: dict[str, Any]) -> RoomVersionRules:
    if "new_version" not in body:
        raise MissingParam("new_version is missing")
    version = body["new_version"]
    if not isinstance(version, str):
        raise BadJson("new_version must be a string")
    if version not in ROOM_VERSIONS:
        raise UnsupportedRoomVersion("Rooms of this version cannot be made here")
    return ROOM_VERSIONS[version]


def _creators_of(body: dict[str, Any]) -> tuple[UserId, ...]:
    given = body.get("additional_creators")
    if given is None:
        return ()
    if not isinstance(given, list):
        raise BadJson("additional_creators must be a list")
    if len(given) > MAX_ADDITIONAL_CREATORS:
        raise InvalidParam(f"additional_creators must not have more than {MAX_ADDITIONAL_CREATORS} users")
    try:
        return tuple(dict.fromkeys(parse_user_id(value) for value in given))
    except InvalidIdentifier as error:
        raise InvalidParam(f"additional_creators: {error}") from error
