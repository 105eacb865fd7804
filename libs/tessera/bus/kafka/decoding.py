"""From what lies in a topic to what it says.

A record of a version, or with a content, that only a newer process knows stops its partition with an
alarm until this one has been upgraded: it is no dead letter. What none of us wrote is left out.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import orjson
import structlog

from tessera.bus.kafka import metrics
from tessera.bus.kafka.envelope import Malformed, check_version
from tessera.bus.kafka.feed import PartitionFeed
from tessera.bus.kafka.fetch_request import FetchedRecord

log = structlog.get_logger(__name__)

Decoded = TypeVar("Decoded")


def decode_all(
    feed: PartitionFeed, topic: str, records: Sequence[FetchedRecord], decode: Callable[[bytes], Decoded]
) -> Iterator[tuple[FetchedRecord, Decoded]]:
    """Each record with what it says, as far as that is known; the feed is stopped where it is not."""
    stopped: set[int] = set()
    for record in records:
        if record.partition in stopped:
            continue
        place = {"topic": topic, "partition": record.partition, "offset": record.offset}
        try:
            check_version(record.headers)
            decoded = decode(record.value)
        except (Malformed, orjson.JSONDecodeError) as error:
            metrics.MALFORMED.labels(topic).inc()
            log.error(
                "record left out", topic=topic, partition=record.partition, offset=record.offset, error=str(error)
            )
        except Exception as error:  # whatever decoding meets: the next version may know it
            stopped.add(record.partition)
            feed.stop(record.partition)
            log.error("partition stopped at a record of an unknown version", error=repr(error), **place)
        else:
            yield record, decoded
