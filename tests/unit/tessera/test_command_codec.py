"""Commands as bytes."""

from typing import Any

import orjson

from matrixcore.identifiers import RoomId, UserId
from tessera.commands import Append, Command, NewEvent, decode_command, encode_command

COMMAND = Command(
    b"\x00\xff" * 16,
    RoomId("!room:test.example"),
    7,
    UserId("@alice:test.example"),
    1_700_000_000_000,
    Append(NewEvent("m.room.message", None, {"body": "hé"}), "DEVICE", "txn", ("leave", "invite")),
    "gateway-1",
)


def test_a_command_survives_its_journey() -> None:
    assert decode_command(encode_command(COMMAND)) == COMMAND


def test_commands_of_the_neighbouring_formats_are_read() -> None:
    fields: list[Any] = orjson.loads(encode_command(COMMAND))
    assert decode_command(orjson.dumps(fields[:8])).reply_to == ""
    assert decode_command(orjson.dumps([*fields, "something newer"])) == COMMAND
