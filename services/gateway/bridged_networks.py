"""What application services say of the networks that they bridge.

The metadata of a protocol is remembered for a while; look-ups are asked of every service of the protocol side by side,
each for a bounded time. A service that does not answer has nothing to say.

Spec: Application Service API §Third-party networks.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import structlog

from matrixcore.identifiers import UserId
from tessera.appservice_client import AppServiceClient, AppServiceFailed
from tessera.appservices import AppServices, Registration
from tessera.bounded_cache import BoundedCache
from tessera.clock import Clock
from tessera.http.errors import LimitExceeded

log = structlog.get_logger(__name__)

KEPT_SECONDS = 300.0
SILENCE_KEPT_SECONDS = 10.0  # for which a service that did not answer is not asked for its protocols again
MAX_KEPT = 1_000
MAX_ASKING = 32  # requests to services at once
MAX_FOUND = 500
RETRY_AFTER_MS = 1_000

_LISTS = ("user_fields", "location_fields")


class BridgedNetworks:
    """Asks application services for networks, and remembers what protocols are."""

    def __init__(self, services: AppServices, client: AppServiceClient, clock: Clock) -> None:
        self._services = services.reachable
        self._client = client
        self._clock = clock
        self._protocols: BoundedCache[tuple[str, str], tuple[float, dict[str, Any] | None]] = BoundedCache(MAX_KEPT)
        self._asking = 0

    @property
    def protocols(self) -> list[str]:
        """The names of all protocols."""
        return list(dict.fromkeys(name for one in self._services for name in one.protocols))

    async def find_protocol(self, protocol: str) -> dict[str, Any] | None:
        """What a protocol is, with the instances of all its services; None if none of them says."""
        serving = self._of(protocol)
        answers = await asyncio.gather(*(self._metadata(service, protocol) for service in serving))
        found: dict[str, Any] | None = None
        instances: list[dict[str, Any]] = []
        for service, answer in zip(serving, answers, strict=True):
            if answer is not None:
                found = found or answer
                instances += _instances(service, answer)
        return None if found is None else {**found, "instances": instances}

    async def list_matches(self, kind: str, protocol: str, fields: Mapping[str, str]) -> list[dict[str, Any]]:
        """What the services of a protocol find by fields: `kind` is user or location."""
        path = f"{kind}/{quote(protocol, safe='')}"
        return await self._list(self._of(protocol), kind, path, fields)

    async def list_by_matrix_id(self, kind: str, key: str, value: str) -> list[dict[str, Any]]:
        """What a user or an alias is on the networks of the services that have it in a namespace."""
        serving = [one for one in self._services if _has(one, kind, value)]
        return await self._list(serving, kind, kind, {key: value})

    def _of(self, protocol: str) -> list[Registration]:
        return [one for one in self._services if protocol in one.protocols]

    async def _metadata(self, service: Registration, protocol: str) -> dict[str, Any] | None:
        key, now = (service.service_id, protocol), self._clock.monotonic()
        kept = self._protocols.get(key)
        if kept is not None and kept[0] > now:
            return kept[1]
        answer = await self._ask(service, f"protocol/{quote(protocol, safe='')}", {})
        found = _checked_protocol(answer)
        self._protocols[key] = (now + (SILENCE_KEPT_SECONDS if found is None else KEPT_SECONDS), found)
        return found

    async def _list(
        self, serving: Sequence[Registration], kind: str, path: str, query: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        answers = await asyncio.gather(*(self._ask(service, path, query) for service in serving))
        name = "userid" if kind == "user" else "alias"
        found = [
            one
            for answer in answers
            if isinstance(answer, list)
            for one in answer
            if isinstance(one, dict)
            and isinstance(one.get(name), str)
            and isinstance(one.get("protocol"), str)
            and isinstance(one.get("fields"), dict)
        ]
        return found[:MAX_FOUND]

    async def _ask(self, service: Registration, path: str, query: Mapping[str, str]) -> Any:
        if self._asking >= MAX_ASKING:
            raise LimitExceeded(RETRY_AFTER_MS)
        self._asking += 1
        try:
            return await self._client.ask_third_party(service, path, query)
        except AppServiceFailed as error:
            log.info("application service not asked", service_id=service.service_id, error=str(error))
            return None
        finally:
            self._asking -= 1


def instance_id(service_id: str, network_id: str) -> str:
    """What clients call an instance of a network, on this server alone."""
    return f"{service_id}|{network_id}"


def _checked_protocol(answer: Any) -> dict[str, Any] | None:
    """A protocol as the specification has it, so far that clients can rely on it; None for anything else."""
    if not isinstance(answer, dict):
        return None
    lists = {name: answer.get(name, []) for name in _LISTS}
    if not all(isinstance(one, list) for one in lists.values()) or not isinstance(answer.get("instances", []), list):
        return None
    types, icon = answer.get("field_types", {}), answer.get("icon", "")
    if not isinstance(types, dict) or not isinstance(icon, str):
        return None
    return {**answer, **lists, "field_types": types, "icon": icon}


def _instances(service: Registration, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The instances of one service, each with an ID that no other on this server has."""
    return [
        {**one, "instance_id": instance_id(service.service_id, one["network_id"])}
        for one in answer.get("instances", [])
        if isinstance(one, dict) and isinstance(one.get("network_id"), str)
    ]


def _has(service: Registration, kind: str, name: str) -> bool:
    return service.has_user(UserId(name)) if kind == "user" else service.has_alias(name)
