"""Bodies that clients may leave out: no body counts as an empty object."""

from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from tessera.http.bodies import read_json_object


async def _read(request: Request) -> dict[str, Any]:
    return await read_json_object(request, allow_empty=True)


OptionalJsonObject = Annotated[dict[str, Any], Depends(_read)]
