"""Which answers need no complaint although the operation's own list lacks them, and why.

The OpenAPI files list what is particular to an operation; what any operation may answer stands in prose. Each
line below says where, or why Tessera answers so on purpose.
"""

from dataclasses import dataclass, field

ANY: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Allowed:
    """An answer outside the documented ones that is right.

    Attributes:
        errcodes: of which the answer has one; without any, the answer may be no error.
        operations: operationIds; none for all.
        apis: folders of the specification; none for all.
    """

    status: int
    errcodes: frozenset[str]
    why: str
    operations: frozenset[str] = field(default=ANY)
    apis: frozenset[str] = field(default=ANY)

    def covers(self, api: str, operation: str, status: int, errcode: str) -> bool:
        return (
            status == self.status
            and (errcode in self.errcodes or (not self.errcodes and not errcode))
            and (not self.operations or operation in self.operations)
            and (not self.apis or api in self.apis)
        )


def _codes(*names: str) -> frozenset[str]:
    return frozenset(names)


_COMMON = "C-S API §Common error codes: any operation may answer it"
_NOT_SERVED = f"{_COMMON}: an empty part makes another path, or nothing of the kind is set up"
ALLOWED: tuple[Allowed, ...] = (
    Allowed(400, _codes("M_BAD_JSON", "M_NOT_JSON", "M_UNKNOWN"), _COMMON),
    Allowed(
        400, _codes("M_INVALID_PARAM", "M_MISSING_PARAM"), "C-S API §Other error codes: a parameter is wrong or missing"
    ),
    Allowed(401, _codes("M_MISSING_TOKEN", "M_UNKNOWN_TOKEN"), _COMMON),
    Allowed(403, _codes("M_FORBIDDEN"), _COMMON),
    Allowed(404, _codes("M_NOT_FOUND"), _COMMON),
    Allowed(404, _codes("M_UNRECOGNIZED"), _NOT_SERVED),
    Allowed(405, _codes("M_UNRECOGNIZED"), _NOT_SERVED),
    Allowed(
        401, _codes("M_UNAUTHORIZED"), "S-S API §Request Authentication: unsigned, so 401", apis=_codes("server-server")
    ),
    Allowed(
        502,
        _codes("M_UNKNOWN"),
        "the server or page that the request names does not answer; 502 is what the media API has for that",
        operations=_codes(
            *("getPublicRooms", "queryPublicRooms", "getUrlPreview", "getUrlPreviewAuthed"),
            *("joinRoom", "joinRoomById", "knockRoom", "getRoomIdByAlias", "getRoomSummary"),
            *("post3PIDs", "bind3PID", "inviteBy3PID", "inviteUser"),
        ),
    ),
    Allowed(413, _codes("M_TOO_LARGE"), "C-S API §Other error codes: the request or an event is too large"),
)


def reason_for(api: str, operation: str, status: int, errcode: str) -> str | None:
    """Why an undocumented answer is right; None where nothing says so."""
    return next((one.why for one in ALLOWED if one.covers(api, operation, status, errcode)), None)
