"""What clients are told about exceptions, whoever raised them.

Spec: C-S API §Standard error response.
"""

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from matrixcore import canonical_json
from matrixcore.identifiers import InvalidIdentifier
from tessera.http.errors import (
    BadJson,
    InvalidParam,
    MatrixError,
    MissingParam,
    NotJson,
    Unavailable,
    Unrecognized,
)
from tessera.room_commands import CommandUnanswered
from tessera.storage.database import DatabaseUnavailable

log = structlog.get_logger(__name__)


def matrix_error_of(error: Exception) -> MatrixError | None:
    """The answer that an exception stands for; None for one that nobody foresaw."""
    match error:
        case MatrixError():
            return error
        case RequestValidationError():
            return _of_validation(error)
        case HTTPException():
            return _of_http_exception(error)
        case InvalidIdentifier():
            return InvalidParam(str(error))
        case canonical_json.InvalidJson():
            return of_invalid_json(error)
        case CommandUnanswered():
            return Unavailable("The room did not answer in time; nothing was done", retry_after_ms=error.retry_after_ms)
        case DatabaseUnavailable():
            log.warning("database unavailable", error=str(error))
            return Unavailable()
    return None


def of_invalid_json(error: canonical_json.InvalidJson) -> MatrixError:
    """M_NOT_JSON or M_BAD_JSON for what `matrixcore.canonical_json` refuses."""
    if isinstance(error, canonical_json.NotJson):
        return NotJson(f"Content is not JSON: {error}")
    return BadJson(f"Content is not acceptable: {error}")


def _of_validation(error: RequestValidationError) -> MatrixError:
    """Name the first thing that FastAPI could not use."""
    problem = error.errors()[0]
    place, *names = (str(part) for part in problem["loc"])
    field = ".".join(names) or place
    if problem["type"] == "missing":
        return MissingParam(f"{field} is missing")
    if problem["type"] == "json_invalid":
        return NotJson("Content is not JSON")
    message = f"{field}: {problem['msg']}"
    return BadJson(message) if place == "body" else InvalidParam(message)


def _of_http_exception(error: HTTPException) -> MatrixError:
    if error.status_code in (404, 405):
        return Unrecognized(status=error.status_code)
    return MatrixError(str(error.detail), errcode="M_UNKNOWN", status=error.status_code, headers=error.headers)
