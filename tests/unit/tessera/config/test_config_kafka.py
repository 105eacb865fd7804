"""tessera.kafka."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tessera.config import KafkaSettings, Settings


def settings(**kafka: object) -> KafkaSettings:
    made = Settings.for_tests(tessera={"kafka": {"bootstrap_servers": "k1:9092", **kafka}}).tessera.kafka
    assert made is not None
    return made


def test_one_server_or_several() -> None:
    assert settings().bootstrap_servers == ("k1:9092",)
    assert settings(bootstrap_servers=["k1:9092", "[::1]:9093"]).bootstrap_servers == ("k1:9092", "[::1]:9093")


def test_durations_have_units() -> None:
    assert settings(request_timeout="10s", retention="7d").request_timeout == 10_000
    assert settings(retention="7d").retention == 7 * 86_400_000


def test_files_start_from_the_configuration(tmp_path: Path) -> None:
    assert settings(ssl_cafile=tmp_path / "ca.pem").ssl_cafile == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"bootstrap_servers": "k1"}, "host:port"),
        ({"bootstrap_servers": []}, "at least one"),
        ({"topic_prefix": "a/b"}, "pattern"),
        ({"security_protocol": "SASL_SSL"}, "needs sasl_username and sasl_password"),
        ({"ssl_keyfile": "key.pem"}, "needs ssl_certfile"),
        ({"min_insync_replicas": 4}, "must not be larger than replication_factor"),
        ({"fetch_max_wait": 4_800}, "longer than fetch_max_wait"),
        ({"request_timeout": "1m"}, "less than or equal"),
        ({"topic_prefixes": "a"}, "not permitted"),
    ],
)
def test_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        settings(**wrong)
