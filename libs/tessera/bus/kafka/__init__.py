"""The buses on Kafka, for services in processes of their own."""

from tessera.bus.kafka.backlog import DoneOffset, ReadDoneOffsets
from tessera.bus.kafka.buses import KafkaBuses, open_buses
from tessera.bus.kafka.connection import KafkaConnection
from tessera.bus.kafka.topics import TopicPlan, TopicsDisagree, check_topics, create_topics, plan_topics

__all__ = [
    "DoneOffset",
    "KafkaBuses",
    "KafkaConnection",
    "ReadDoneOffsets",
    "TopicPlan",
    "TopicsDisagree",
    "check_topics",
    "create_topics",
    "open_buses",
    "plan_topics",
]
