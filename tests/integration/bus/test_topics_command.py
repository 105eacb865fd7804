"""`tessera topics`, as an operator runs it."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
import yaml

from tessera.bus.kafka.topics import COMMANDS
from tests.fixtures.kafka_broker import Broker
from tests.fixtures.kafka_topics import Administration, topic_prefix


class Operator:
    """Runs the command with a configuration."""

    def __init__(self, folder: Path, **kafka: object) -> None:
        self._config = folder / "homeserver.yaml"
        kafka = {"replication_factor": 1, "min_insync_replicas": 1, **kafka}
        content = {
            "server_name": "chat.example",
            "listeners": [{"port": 8008, "resources": [{"names": ["client"]}]}],
            "signing_key": "ed25519 test " + "A" * 43,
            "tessera": {"data_dir": str(folder), "partitions": 3, "kafka": kafka, "log_level": "error"},
        }
        if not kafka.get("bootstrap_servers"):
            del content["tessera"]["kafka"]
        self._config.write_text(yaml.safe_dump(content))

    async def run(self, *options: str) -> tuple[int, list[str], list[str]]:
        """(status, lines said, lines complained)."""
        command = [sys.executable, "-m", "services.cli", "topics", "--config", str(self._config), *options]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "NO_COLOR": "1"},
        )
        async with asyncio.timeout(60):
            said, complained = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode().splitlines(), complained.decode().splitlines()


async def test_topics_are_made_once_and_checked(kafka: Broker, tmp_path: Path) -> None:
    prefix = topic_prefix()
    operator = Operator(tmp_path, bootstrap_servers=kafka.bootstrap, topic_prefix=prefix)
    status, _said, complained = await operator.run("--check")
    assert status == 1
    assert complained == [
        f"tessera: Kafka has no topic {prefix}room.commands and no topic {prefix}room.log; run `tessera topics`"
    ]
    status, said, complained = await operator.run()
    assert (status, complained) == (0, [])
    assert said[:2] == [f"made {prefix}room.commands", f"made {prefix}room.log"]
    status, said, complained = await operator.run()
    assert (status, complained) == (0, [])
    assert said == [
        f"{prefix}room.commands: 3 partitions, 1 replicas, as configured",
        f"{prefix}room.log: 3 partitions, 1 replicas, as configured",
    ]


async def test_a_wrong_number_of_partitions_is_one_line(kafka: Broker, tmp_path: Path) -> None:
    prefix = topic_prefix()
    await Administration(kafka.settings(prefix)).make(COMMANDS, 5, **{"max.message.bytes": "9000000"})
    status, said, complained = await Operator(tmp_path, bootstrap_servers=kafka.bootstrap, topic_prefix=prefix).run()
    assert (status, said) == (1, [f"made {prefix}room.log"])
    assert complained == [f"tessera: {prefix}room.commands has 5 partitions, the database 3 (tessera.partitions)"]


@pytest.mark.parametrize(
    ("kafka_settings", "said"),
    [
        ({"bootstrap_servers": "127.0.0.1:9"}, "tessera: Kafka does not answer: "),
        ({"bootstrap_servers": None}, "tessera: there is no Kafka in the configuration"),
    ],
)
async def test_what_an_operator_can_mend_is_one_line(
    tmp_path: Path, kafka_settings: dict[str, object], said: str
) -> None:
    status, _said, complained = await Operator(tmp_path, **kafka_settings).run()
    assert status == 1
    assert len(complained) == 1
    assert complained[0].startswith(said)
