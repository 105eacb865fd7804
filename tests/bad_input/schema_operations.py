"""The operations of OpenAPI files, and requests to them: such as they describe, and such as they rule out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode, openapi

VALID, INVALID = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@dataclass(frozen=True)
class Operation:
    """One operation of the specification.

    Attributes:
        api: the folder that its file is in, such as "client-server".
        documented: the status codes that it may answer with.
        needs_token: whether its file says that a caller without an access token is refused.
    """

    api: str
    name: str
    method: str
    path: str
    documented: frozenset[int]
    needs_token: bool
    described: APIOperation

    @property
    def label(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def prefix(self) -> str:
        """What stands before the path that the file gives: the file's base path."""
        return self.path.removesuffix(self.described.path)

    def requests(self, mode: GenerationMode, count: int, start: int) -> list[Case]:
        """At most so many requests; the same ones for the same start.

        A part that cannot be made wrong (an operation without parameters or a body) gives none.
        """
        made: list[Case] = []

        @seed(start)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(self.described.as_strategy(generation_mode=mode))
        def gather(case: Case) -> None:
            made.append(case)

        try:
            gather()
        except Unsatisfiable:
            return []
        return made


def read_operations(folder: Path, apis: tuple[str, ...]) -> Iterator[Operation]:
    """All operations of the folders `apis` of the specification's `api` folder, file by file."""
    for api in apis:
        for file in sorted((folder / api).glob("*.yaml")):
            for result in openapi.from_path(str(file)).get_all_operations():
                described = result.ok()
                raw = described.definition.raw
                yield Operation(
                    api=api,
                    name=raw["operationId"],
                    method=described.method.upper(),
                    path=described.full_path,
                    documented=frozenset(int(status) for status in described.responses.status_codes),
                    needs_token=any("accessTokenBearer" in one for one in raw.get("security", ())),
                    described=described,
                )
