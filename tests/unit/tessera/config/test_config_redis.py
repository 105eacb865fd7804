"""Where Redis is."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tessera.config import ConfigError, RedisAddress, RedisSettings, parse_redis_url, read_settings


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://cache", RedisAddress((("cache", 6379),))),
        ("valkey://cache:1234/3", RedisAddress((("cache", 1234),), database=3)),
        ("rediss://:p%40ss@cache", RedisAddress((("cache", 6379),), tls=True, password="p@ss")),
        ("redis://me:word@[::1]:7000/0", RedisAddress((("::1", 7000),), username="me", password="word")),
        ("unix:///run/redis.sock?db=2", RedisAddress(socket=Path("/run/redis.sock"), database=2)),
        ("unix://:word@/run/redis.sock", RedisAddress(socket=Path("/run/redis.sock"), password="word")),
        (
            "redis+sentinel://:word@one,two:26380,three/chat/1",
            RedisAddress(
                (("one", 26379), ("two", 26380), ("three", 26379)), service="chat", database=1, password="word"
            ),
        ),
    ],
)
def test_urls_are_taken_apart(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://cache", "must be a redis://"),
        ("redis://", "name a host"),
        ("redis://:secret@cache:99999", "port"),
        ("redis://one,two", "only with redis\\+sentinel"),
        ("redis://cache/first", "database"),
        ("redis://cache/1/2", "too many"),
        ("redis+sentinel://one,two", "name the master"),
        ("unix://cache/run", "absolute path"),
    ],
)
def test_wrong_urls_are_refused_without_their_password(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_redis_url(url)
    assert "secret" not in str(caught.value)


def test_a_password_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "word").write_text("s3cret\n")
    (tmp_path / "homeserver.yaml").write_text(
        "server_name: test.example\ntessera:\n  redis:\n    url: redis://cache\n    password_path: word\n"
        "    publish_timeout: 300\n"
    )
    settings = read_settings(tmp_path / "homeserver.yaml", {"TESSERA_REDIS__KEY_PREFIX": "mine:"})
    redis = settings.tessera.redis
    assert redis is not None
    assert redis.password is not None
    assert redis.password.get_secret_value() == "s3cret"
    assert (redis.key_prefix, redis.publish_timeout) == ("mine:", 300)


def test_a_wrong_url_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "homeserver.yaml").write_text("server_name: test.example\ntessera: {redis: {url: 'http://x'}}\n")
    with pytest.raises(ConfigError, match=r"tessera\.redis\.url"):
        read_settings(tmp_path / "homeserver.yaml", {})


def test_the_prefix_has_no_spaces() -> None:
    with pytest.raises(ValidationError):
        RedisSettings.model_validate({"url": "redis://cache", "key_prefix": "a b"})
