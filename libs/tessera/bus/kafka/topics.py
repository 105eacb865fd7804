"""The topics as they must be, and whether they are.

Spec: none; DESIGN.md sections 3 and 10.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import NoError, TopicAlreadyExistsError, for_code

from tessera.bus.kafka.connection import UNREACHABLE, KafkaConnection, TopicDescription, to_its_end
from tessera.bus.kafka.producing import MAX_RECORD_BYTES
from tessera.bus.protocol import BusUnavailable
from tessera.config import KafkaSettings

log = structlog.get_logger(__name__)

COMMANDS = "room.commands"
RECORDS = "room.log"
NAMES = (COMMANDS, RECORDS)
_LEADERS_PAUSE_SECONDS = 0.05
_LEADERS_PATIENCE_SECONDS = 30.0  # brokers that have just been started take their time


class TopicsDisagree(Exception):
    """Topics are missing or not as the configuration says; the text says in one line what and what to do."""


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """What the configuration asks of each topic."""

    partitions: int
    replication_factor: int
    configs: Mapping[str, str]


def plan_topics(settings: KafkaSettings, partitions: int) -> TopicPlan:
    """The one plan for all topics: nothing in them is compacted or lost by an unclean election."""
    configs = {
        "cleanup.policy": "delete",
        "retention.ms": str(settings.retention),
        "retention.bytes": "-1",
        "min.insync.replicas": str(settings.min_insync_replicas),
        "unclean.leader.election.enable": "false",
        "max.message.bytes": str(MAX_RECORD_BYTES + (64 << 10)),
        "message.timestamp.type": "CreateTime",
    }
    return TopicPlan(partitions, settings.replication_factor, configs)


async def create_topics(connection: KafkaConnection, plan: TopicPlan) -> list[str]:
    """Make the topics that are missing; their full names.

    Raises:
        BusUnavailable: Kafka does not answer, or refuses.
    """
    names = [connection.topic(name) for name in NAMES]
    there = await connection.describe_topics(names)
    missing = [name for name in names if name not in there]
    if not missing:
        return []
    new = [
        NewTopic(name, plan.partitions, plan.replication_factor, topic_configs=dict(plan.configs)) for name in missing
    ]
    async with _Admin(connection) as admin:
        response = await admin.create_topics(new)
    for name, error_code, *_message in response.topic_errors:
        error = for_code(error_code)
        if error not in (NoError, TopicAlreadyExistsError):
            raise BusUnavailable(f"topic {name} cannot be made: {error.__name__}")
    await _await_leaders(connection, missing)
    return missing


async def check_topics(connection: KafkaConnection, plan: TopicPlan) -> dict[str, TopicDescription]:
    """The topics, if they are as planned.

    Raises:
        TopicsDisagree: they are not.
        BusUnavailable: Kafka does not answer.
    """
    names = [connection.topic(name) for name in NAMES]
    there = await connection.describe_topics(names)
    if missing := [name for name in names if name not in there]:
        raise TopicsDisagree(f"Kafka has no topic {' and no topic '.join(missing)}; run `tessera topics`")
    configs = await _read_configs(connection, names)
    problems: list[str] = []
    for name, topic in there.items():
        if topic.partitions != plan.partitions:
            problems.append(
                f"{name} has {topic.partitions} partitions, the database {plan.partitions} (tessera.partitions)"
            )
        if topic.replicas < plan.replication_factor:
            problems.append(f"{name} has {topic.replicas} replicas, not {plan.replication_factor}")
        for key, wanted in plan.configs.items():
            found = configs[name].get(key)
            if found is not None and not _is_enough(key, found, wanted):
                problems.append(f"{name} has {key}={found}, not {wanted}")
    if problems:
        raise TopicsDisagree("; ".join(problems))
    return there


def _is_enough(key: str, found: str, wanted: str) -> bool:
    if key in ("min.insync.replicas", "max.message.bytes"):
        return int(found) >= int(wanted)
    if key in ("retention.ms", "retention.bytes"):
        return int(found) == -1 or (wanted != "-1" and int(found) >= int(wanted))
    return found == wanted


async def _read_configs(connection: KafkaConnection, names: Sequence[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    async with _Admin(connection) as admin:
        responses = await admin.describe_configs(resources)
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for response in responses:
        for error_code, _message, _type, name, entries in response.resources:
            if error_code:
                raise BusUnavailable(f"the settings of topic {name} cannot be read: {for_code(error_code).__name__}")
            found[name] = {key: value for key, value, *_rest in entries if value is not None}
    return found


async def _await_leaders(connection: KafkaConnection, names: Sequence[str]) -> None:
    try:
        async with asyncio.timeout(_LEADERS_PATIENCE_SECONDS):
            while True:
                there = await connection.describe_topics(names)
                if len(there) == len(names) and all([await connection.is_led(topic) for topic in there.values()]):
                    return
                await asyncio.sleep(_LEADERS_PAUSE_SECONDS)
    except TimeoutError:
        raise BusUnavailable("the new topics have no leaders yet") from None


class _Admin:
    """An admin client for one request."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._client = AIOKafkaAdminClient(**connection.client_options())

    async def __aenter__(self) -> AIOKafkaAdminClient:
        try:
            await to_its_end(self._client.start())
        except UNREACHABLE as error:
            await self._client.close()
            raise BusUnavailable(f"Kafka does not answer: {error}") from error
        return self._client

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        await self._client.close()
        if isinstance(error, UNREACHABLE):
            raise BusUnavailable(f"Kafka does not answer: {error}") from error
