"""What is checked of a request to send an event before it is a command. Spec: C-S API §Sending events to a room."""

from typing import Any

from matrixcore.identifiers import EventId, InvalidIdentifier, fits_in_bytes, parse_event_id
from tessera.http.errors import InvalidParam, MissingParam

MAX_TXN_ID_BYTES = 255


def check_transaction_id(txn_id: str) -> None:
    """Raises InvalidParam for one that is too long to be shown in events."""
    if not fits_in_bytes(txn_id, MAX_TXN_ID_BYTES):
        raise InvalidParam(f"txnId must not exceed {MAX_TXN_ID_BYTES} bytes")


def redaction_target(content: dict[str, Any]) -> EventId:
    """What a redaction that is sent like a message redacts.

    Raises:
        MissingParam, InvalidParam
    """
    if "redacts" not in content:
        raise MissingParam("redacts is missing")
    try:
        return parse_event_id(content["redacts"])
    except InvalidIdentifier as error:
        raise InvalidParam(f"redacts: {error}") from error
