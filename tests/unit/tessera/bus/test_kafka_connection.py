"""What the clients are told of the cluster."""

from tessera.bus.kafka import KafkaConnection, plan_topics
from tessera.bus.kafka.topics import COMMANDS
from tessera.config import KafkaSettings


def settings(**changes: object) -> KafkaSettings:
    return KafkaSettings.model_validate({"bootstrap_servers": "k1:9092", **changes})


async def test_a_password_and_certificates_reach_the_clients() -> None:
    secured = settings(
        security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", sasl_username="me", sasl_password="word"
    )
    options = KafkaConnection(secured, "tests").client_options()
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("me", "word")
    assert options["ssl_context"].check_hostname


async def test_nothing_is_secret_in_the_clear() -> None:
    options = KafkaConnection(settings(sasl_username="me", sasl_password="word"), "tests").client_options()
    assert options["ssl_context"] is None
    assert not any(name.startswith("sasl") for name in options)


async def test_topics_have_the_prefix() -> None:
    assert KafkaConnection(settings(topic_prefix="chat."), "tests").topic(COMMANDS) == "chat.room.commands"


def test_the_plan_loses_nothing_by_itself() -> None:
    plan = plan_topics(settings(replication_factor=3, min_insync_replicas=2, retention="1d"), 16)
    assert (plan.partitions, plan.replication_factor) == (16, 3)
    assert plan.configs["cleanup.policy"] == "delete"
    assert plan.configs["unclean.leader.election.enable"] == "false"
    assert plan.configs["min.insync.replicas"] == "2"
    assert plan.configs["retention.ms"] == "86400000"
