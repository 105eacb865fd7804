"""What an operator, an accident or a newer release may do to a topic."""

import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete

from tessera.bus.kafka import KafkaConnection
from tessera.config import KafkaSettings


class Administration:
    """Direct access to the topics of these settings."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._options = KafkaConnection(settings, "administration").client_options()

    def _name(self, topic: str) -> str:
        return f"{self._settings.topic_prefix}{topic}"

    async def empty(self, topic: str, partition: int, before: int) -> None:
        """Delete the records below an offset."""
        async with _Admin(self._options) as admin:
            await admin.delete_records({TopicPartition(self._name(topic), partition): RecordsToDelete(before)})

    async def make(self, topic: str, partitions: int, **configs: str) -> None:
        """Make a topic, whatever the settings ask of it."""
        async with _Admin(self._options) as admin:
            await admin.create_topics([NewTopic(self._name(topic), partitions, 1, topic_configs=configs)])

    async def remove(self, topic: str) -> None:
        """Delete a topic, and wait until every request sees that."""
        async with _Admin(self._options) as admin:
            await admin.delete_topics([self._name(topic)])
            async with asyncio.timeout(20):
                while self._name(topic) in await admin.list_topics():
                    await asyncio.sleep(0.02)

    async def produce(self, topic: str, partition: int, value: bytes, *headers: tuple[str, bytes]) -> None:
        """Put any bytes into a topic."""
        producer = AIOKafkaProducer(**self._options)
        await producer.start()
        try:
            await producer.send_and_wait(self._name(topic), value, partition=partition, headers=list(headers))
        finally:
            await producer.stop()

    async def first_record(self, topic: str, partition: int) -> ConsumerRecord:
        """The first record of a partition, as it lies there."""
        consumer = AIOKafkaConsumer(group_id=None, auto_offset_reset="earliest", **self._options)
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self._name(topic), partition)])
            return await consumer.getone()
        finally:
            await consumer.stop()


class _Admin:
    def __init__(self, options: dict[str, object]) -> None:
        self._client = AIOKafkaAdminClient(**options)

    async def __aenter__(self) -> AIOKafkaAdminClient:
        await self._client.start()
        return self._client

    async def __aexit__(self, *_error: object) -> None:
        await self._client.close()
