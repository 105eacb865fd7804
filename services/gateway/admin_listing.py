"""Pages of the admin API's lists: from, limit, order_by, dir."""

from collections.abc import Container
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query

from tessera.http.errors import InvalidParam

MAX_LIMIT = 1_000


@dataclass(frozen=True, slots=True)
class Paging:
    """Which page of a list."""

    start: int
    limit: int
    order_by: str | None
    descending: bool | None

    def order(self, known: Container[str], default: str) -> str:
        """The order that was asked for. Raises InvalidParam."""
        order = self.order_by or default
        if order not in known:
            raise InvalidParam("order_by is unknown")
        return order


async def _paging_of(
    start: Annotated[int, Query(alias="from", ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1)] = 100,
    order_by: str | None = None,
    direction: Annotated[str | None, Query(alias="dir")] = None,
) -> Paging:
    if direction not in (None, "f", "b"):
        raise InvalidParam("dir must be f or b")
    return Paging(start, min(limit, MAX_LIMIT), order_by, None if direction is None else direction == "b")


PagingQuery = Annotated[Paging, Depends(_paging_of)]
