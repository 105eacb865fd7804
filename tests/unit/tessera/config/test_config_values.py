"""Durations, sizes, networks and names as Synapse writes them."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tessera.config import Settings
from tessera.config.values import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        *((90_000, 90_000), ("90000", 90_000), ("90s", 90_000), ("5m", 300_000), ("2h", 7_200_000), (0, 0)),
        *(("1d", 86_400_000), ("1w", 604_800_000), ("1y", 31_536_000_000)),
    ],
)
def test_durations(text: object, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize(
    ("text", "count"), [(5, 5), ("5", 5), ("512K", 524_288), ("50M", 52_428_800), ("1G", 1 << 30), ("2T", 2 << 40)]
)
def test_sizes(text: object, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "m", "-1", "1.5h", "1 day", "1M", True, None, -5, [], 1.5])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="must be a duration such as"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "50m", "50MB", "1d", True, None, -5])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match="must be a size such as"):
        parse_size(text)


def test_a_limit_given_by_half_keeps_its_own_default_for_the_rest() -> None:
    settings = Settings.for_tests(
        rc_message={"per_second": 5}, rc_login={"address": {"burst_count": 7}}, rc_admin_redaction={"burst_count": 50}
    )
    limits = settings.rate_limits()
    assert (limits["rc_message"].per_second, limits["rc_message"].burst_count) == (5, 10)
    assert (limits["rc_login.address"].per_second, limits["rc_login.address"].burst_count) == (0.003, 7)
    assert (limits["rc_login.account"].per_second, limits["rc_login.account"].burst_count) == (0.003, 5)
    assert (limits["rc_admin_redaction"].per_second, limits["rc_admin_redaction"].burst_count) == (0.17, 50)


def test_the_limits_that_synapse_has_when_nothing_is_said() -> None:
    limits = {name: (limit.per_second, limit.burst_count) for name, limit in Settings.for_tests().rate_limits().items()}
    assert limits["rc_message"] == (0.2, 10)
    assert limits["rc_registration"] == (0.17, 3)
    assert limits["rc_login.failed_attempts"] == (0.17, 3)
    assert limits["rc_joins.local"] == (0.1, 10)
    assert limits["rc_invites.per_user"] == (0.003, 5)
    assert "rc_admin_redaction" not in limits
    assert not any(name.startswith("rc_federation") for name in limits), "another shape"


@pytest.mark.parametrize("limit", [{"per_second": -1}, {"burst_count": 0}, {"burst_count": "many"}, 5])
def test_limits_that_make_no_sense(limit: object) -> None:
    with pytest.raises(ValidationError):
        Settings.for_tests(rc_message=limit)


@pytest.mark.parametrize(
    ("arguments", "dsn"),
    [
        (
            {"user": "u", "password": "p@/:", "dbname": "d", "host": "h", "port": 5433},
            "postgresql://u:p%40%2F%3A@h:5433/d",
        ),
        ({"user": "u", "database": "d", "host": "/run/pg"}, "postgresql://u@/d?host=%2Frun%2Fpg"),
        ({"user": "u", "dbname": "d", "host": "::1", "port": 1}, "postgresql://u@[::1]:1/d"),
        ({"dbname": "d", "host": "a,b", "sslmode": "require"}, "postgresql:///d?host=a%2Cb&sslmode=require"),
        ({"user": "u", "dbname": "d", "host": "/s", "port": 5433}, "postgresql://u@/d?host=%2Fs&port=5433"),
    ],
)
def test_synapses_database_arguments_become_a_url(arguments: dict[str, Any], dsn: str) -> None:
    settings = Settings.for_tests(database={"name": "psycopg2", "args": arguments})
    assert settings.accounts_dsn == dsn
    assert settings.shard_dsns(dsn) == {"main": dsn}
    assert not settings.uses_embedded_postgres


def test_shards_of_their_own() -> None:
    settings = Settings.for_tests(
        tessera={
            "accounts_dsn": "postgresql://a/accounts",
            "shards": {"one": "postgresql://b/x", "two": "postgres://c/x"},
        }
    )
    assert settings.accounts_dsn == "postgresql://a/accounts"
    assert settings.shard_dsns("unused") == {"one": "postgresql://b/x", "two": "postgres://c/x"}


def test_resources_bring_others_along() -> None:
    [client, metrics] = Settings.for_tests(
        listeners=[
            {"port": 0, "resources": [{"names": ["client"], "compress": True}]},
            {"port": 9000, "type": "metrics", "bind_address": "127.0.0.1"},
        ]
    ).listeners
    assert client.resource_names() == {"client", "media", "static", "health"}
    assert client.bind_addresses == ("::", "0.0.0.0")
    assert metrics.resource_names() == {"metrics", "health"}
    assert metrics.bind_addresses == ("127.0.0.1",)


def test_secrets_are_never_shown() -> None:
    settings = Settings.for_tests(
        registration_shared_secret="hush", turn_password="hush", tessera={"accounts_dsn": "postgresql://u:hush@h/d"}
    )
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings)
    assert "hush" not in settings.model_dump_json()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings.for_tests().server_name = "other.example"  # type: ignore[misc, assignment]


def test_networks_that_are_closed_unless_the_file_says_otherwise() -> None:
    settings = Settings.for_tests()
    assert {"10.0.0.0/8", "127.0.0.0/8", "::1/128", "fe80::/10", "169.254.0.0/16"} <= set(
        map(str, settings.ip_range_blocklist)
    )
    renamed = Settings.for_tests(ip_range_blacklist=["10.1.2.3"], ip_range_whitelist=["10.0.0.1/8"])
    assert [str(network) for network in renamed.ip_range_blocklist] == ["10.1.2.3/32"]
    assert [str(network) for network in renamed.ip_range_allowlist] == ["10.0.0.0/8"]


def test_the_pepper_of_imported_hashes_is_a_secret() -> None:
    settings = Settings.for_tests(password_config={"pepper": "salt and"})
    pepper = settings.password_config.pepper
    assert pepper is not None
    assert pepper.get_secret_value() == "salt and"
    assert "salt and" not in repr(settings)
    assert Settings.for_tests(password_config={"pepper": ""}).password_config.pepper is not None


def test_rules_against_links() -> None:
    rules = [{"netloc": "*.example.org", "path": "^/secret/"}, {"username": "*"}]
    settings = Settings.for_tests(url_preview_enabled=True, url_preview_url_blocklist=rules)
    assert [dict(rule) for rule in settings.url_preview_url_blacklist] == rules
    for wrong in ({}, {"host": "x"}, {"path": "^("}):
        with pytest.raises(ValidationError):
            Settings.for_tests(url_preview_url_blacklist=[wrong])


@pytest.mark.parametrize(
    ("mode", "means"), [(0o660, 0o660), ("0660", 0o660), ("660", 0o660), (660, 0o660), (666, 0o666)]
)
def test_unix_sockets(mode: object, means: int) -> None:
    (listener,) = Settings.for_tests(listeners=[{"path": "/run/tessera.sock", "mode": mode}]).listeners
    assert (listener.path, listener.mode, listener.x_forwarded) == (Path("/run/tessera.sock"), means, True)


@pytest.mark.parametrize(
    "listener",
    [
        {},
        {"port": 1, "path": "/a"},
        {"path": "/a", "bind_addresses": ["::1"]},
        {"path": "/a", "tls": True},
        {"path": "/a", "mode": "rw"},
        {"path": "/a", "mode": 0o7777},
        {"path": "/a", "mode": 899},
        {"port": 1, "mode": 0o600},
    ],
)
def test_listeners_that_make_no_sense(listener: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings.for_tests(listeners=[listener])
