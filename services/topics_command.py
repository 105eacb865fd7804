"""`tessera topics`: make the topics, and say whether they are as the configuration asks."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from services.command_line import (
    DEFAULT_CONFIG,
    ConfigOption,
    console,
    fail,
    read_config,
    run_to_end,
    set_up_logging,
)
from tessera.service import CannotStart

if TYPE_CHECKING:
    from tessera.config import KafkaSettings


def topics_command(
    config: ConfigOption = DEFAULT_CONFIG,
    check: Annotated[bool, typer.Option("--check", help="only look; make nothing")] = False,
) -> None:
    """Make the Kafka topics that are missing, and check them all: partitions, replicas, what may lose records."""
    settings = read_config(config)
    set_up_logging(settings)
    kafka = settings.tessera.kafka
    if kafka is None:
        fail("there is no Kafka in the configuration: set tessera.kafka.bootstrap_servers")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it has to say is said in one line here
    partitions = settings.tessera.partitions
    run_to_end(lambda: settle_topics(kafka, partitions, make=not check, say=console.print))


async def settle_topics(kafka: "KafkaSettings", partitions: int, *, make: bool, say: Callable[[str], None]) -> None:
    """Make what is missing, if so asked, and check everything.

    Raises:
        CannotStart: Kafka does not answer, or the topics are not as they must be; a text of one line.
    """
    from tessera.bus import BusUnavailable
    from tessera.bus.kafka import KafkaConnection, TopicsDisagree, check_topics, create_topics, plan_topics

    connection = KafkaConnection(kafka, "tessera-topics")
    plan = plan_topics(kafka, partitions)
    try:
        for name in await create_topics(connection, plan) if make else ():
            say(f"made {name}")
        for topic in (await check_topics(connection, plan)).values():
            say(f"{topic.name}: {topic.partitions} partitions, {topic.replicas} replicas, as configured")
    except (TopicsDisagree, BusUnavailable) as error:
        raise CannotStart(str(error)) from error
    finally:
        await connection.close()
