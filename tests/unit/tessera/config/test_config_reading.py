"""A file and an environment become settings, or a list of everything that is wrong with them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tessera.config import ConfigError, Settings, generate_config, load_signing_keys, read_settings
from tessera.ids import IdSource

Read = Callable[..., Settings]
Refused = Callable[..., dict[str, str]]
MINIMAL = "server_name: example.org\n"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_text(text: str, environ: Mapping[str, str] | None = None, *, check_files: bool = False) -> Settings:
        path = tmp_path / "homeserver.yaml"
        path.write_text(text)
        return read_settings(path, environ or {}, check_files=check_files)

    return read_text


@pytest.fixture
def refused(read: Read) -> Refused:
    """The problems of a configuration by path."""

    def read_text(text: str, environ: Mapping[str, str] | None = None, *, check_files: bool = False) -> dict[str, str]:
        with pytest.raises(ConfigError) as caught:
            read(text, environ, check_files=check_files)
        return {problem.path: problem.reason for problem in caught.value.problems}

    return read_text


def test_a_server_name_is_enough(read: Read, tmp_path: Path) -> None:
    settings = read(MINIMAL)
    assert settings.server_name == "example.org"
    assert settings.default_room_version == "12"
    assert settings.data_dir == tmp_path
    assert settings.media_directory == tmp_path / "media"
    assert settings.signing_key_file == tmp_path / "example.org.signing.key"
    assert settings.uses_embedded_postgres
    assert settings.refreshable_access_token_lifetime == 300_000
    assert not settings.enable_registration


def test_every_problem_is_reported_at_once_with_its_path(refused: Refused) -> None:
    problems = refused(
        """
server_name: "a b"
listners: []
listeners: [{port: 70000, prt: 3, resources: [{names: [clint]}]}]
rc_login: {adress: {}, account: {per_second: x}}
max_upload_size: 5Q
turn_shared_secret: 123
federation_domain_whitelist: [a.example, "b c"]
old_signing_keys: {"ed25519:x": {key: "aa", expired_ts: 1}}
database: {name: sqlite3}
default_room_version: 99
trusted_key_servers: [{server_name: a.example, accept_keys_insecurly: true}]
tessera: {shards: {a: "mysql://"}, log_levl: info}
"""
    )
    assert problems["listners"] == "unknown key; did you mean listeners?"
    assert problems["listeners.0.prt"] == "unknown key; did you mean port?"
    assert problems["rc_login.adress"] == "unknown key; did you mean address?"
    assert problems["tessera.log_levl"] == "unknown key; did you mean log_level?"
    assert problems["trusted_key_servers.0.accept_keys_insecurly"].endswith("did you mean accept_keys_insecurely?")
    assert problems["listeners.0.port"] == "must be less than or equal to 65535"
    assert "'client'" in problems["listeners.0.resources.0.names.0"]
    assert problems["server_name"].startswith("not a server name")
    assert problems["turn_shared_secret"] == "must be a string; put it in quotes"
    assert problems["old_signing_keys.ed25519:x.key"] == "a public key has 32 bytes, not 1"
    assert problems["database.name"].startswith("SQLite is not supported")
    assert problems["default_room_version"].startswith("not a room version")
    assert {"max_upload_size", "federation_domain_whitelist.1", "tessera.shards.a"} <= problems.keys()


def test_what_is_missing(refused: Refused) -> None:
    assert refused("report_stats: false\n") == {"server_name": "is required"}
    assert refused("") == {"server_name": "is required"}


@pytest.mark.parametrize("text", ["[a, b]", "just words", "1: 2"])
def test_what_is_no_mapping(refused: Refused, text: str) -> None:
    assert refused(text) == {"": "must be a YAML mapping of settings"}


def test_what_is_no_yaml_is_told_with_its_line(refused: Refused) -> None:
    [(path, reason)] = refused(MINIMAL + "listeners: [\n").items()
    assert path == "line 3"
    assert reason.startswith("is not YAML")


def test_a_key_that_stands_twice(refused: Refused) -> None:
    assert refused(MINIMAL + "tessera:\n  partitions: 1\n  partitions: 2\n") == {
        "line 4": "is not YAML: partitions stands twice"
    }


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_settings(tmp_path / "none.yaml", {})


def test_synapses_harmless_keys_are_named_and_passed_over(read: Read) -> None:
    settings = read(MINIMAL + "report_stats: true\ncaches: {global_factor: 2}\nform_secret: abc\nenable_search: true\n")
    assert settings.unused_keys == ("caches", "form_secret")


def test_settings_that_nothing_heeds_are_named_where_they_ask_for_something(read: Read) -> None:
    settings = read(
        MINIMAL
        + """
trusted_key_servers: [{server_name: matrix.org}]
redaction_retention_period: 3d
federation_custom_ca_list: []
rc_joins: {local: {burst_count: 7}, remote: {burst_count: 7}}
listeners: [{port: 1}, {port: 2, resources: [{names: [client], compress: true}]}]
user_directory: {prefer_local_users: true, show_locked_users: false}
"""
    )
    assert settings.unused_keys == ("listeners.resources.compress",)


def test_synapses_keys_that_would_change_behaviour_are_refused_unless_off(read: Read, refused: Refused) -> None:
    problems = refused(
        MINIMAL + "saml2_config: {x: y}\nhs_disabled: true\nenable_search: false\npassword_config: {enabled: false}\n"
    )
    assert problems["saml2_config"] == "is not supported; remove it, or switch it off"
    assert problems["enable_search"] == "cannot be changed here; remove it, or leave it at True"
    assert problems["password_config.enabled"] == "cannot be false without oidc_providers: nobody could log in"
    assert problems.keys() == {"saml2_config", "hs_disabled", "enable_search", "password_config.enabled"}
    assert read(
        MINIMAL + "oidc_providers: []\nhs_disabled: false\n"
        "retention: {enabled: false, default_policy: {max_lifetime: 1y}}\n"
        "cas_config:\nemail: {}\nurl_preview_enabled: false\n"
        "password_config: {enabled: true, policy: {enabled: false}}\n"
    )


def test_contradictions(refused: Refused) -> None:
    problems = refused(
        MINIMAL
        + """
enable_registration: true
listeners: [{port: 1, tls: true}, {port: 1}]
tessera: {shards: {a: "postgresql://x/y"}, pool: {min_size: 9, max_size: 3}}
"""
    )
    assert problems.keys() == {
        "enable_registration",
        "tls_certificate_path",
        "tls_private_key_path",
        "listeners.1.port",
        "tessera.shards",
        "tessera.pool.min_size",
    }
    assert refused(MINIMAL + "listeners: []\n") == {"listeners": "must name at least one"}


@pytest.mark.parametrize(
    ("url", "is_fit"),
    [
        ("https://matrix.example.org/", True),
        ("https://matrix.example.org", True),
        ("http://localhost:8008/", True),
        ("http://matrix.example.org/", False),
        ("https://matrix.example.org/below/", False),
        ("https://matrix.example.org/?x=1", False),
        (None, False),
    ],
)
def test_where_people_are_led_to_sign_in(read: Read, refused: Refused, url: str | None, *, is_fit: bool) -> None:
    text = MINIMAL + "tessera: { oauth: { enabled: true } }\n"
    text += "" if url is None else f"public_baseurl: {url}\n"
    if is_fit:
        assert read(text).tessera.oauth.enabled
    else:
        assert "tessera.oauth.enabled" in refused(text)["public_baseurl"]


def test_secrets_in_files(read: Read, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    settings = read(
        MINIMAL + "registration_shared_secret_path: secret\n"
        f"database: {{args: {{user: u, dbname: d, host: h, password_path: {tmp_path}/secret}}}}\n"
    )
    assert settings.registration_shared_secret is not None
    assert settings.registration_shared_secret.get_secret_value() == "from a file"
    assert settings.accounts_dsn == "postgresql://u:from%20a%20file@h/d"
    assert refused(MINIMAL + "turn_shared_secret: x\nturn_shared_secret_path: secret\n") == {
        "turn_shared_secret_path": "give either this or turn_shared_secret"
    }
    assert refused(MINIMAL + "turn_password_path: none\n") == {
        "turn_password_path": "none cannot be read: No such file or directory"
    }


def test_an_address_with_a_password_may_lie_in_a_file(read: Read, tmp_path: Path) -> None:
    (tmp_path / "dsn").write_text("postgresql://tessera:from-a-file@db/accounts\n")
    settings = read(MINIMAL + "tessera: {accounts_dsn_path: dsn}\n")
    assert settings.accounts_dsn == "postgresql://tessera:from-a-file@db/accounts"


def test_the_environment_overrides_the_file(read: Read, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from a file")
    settings = read(
        MINIMAL + "registration_shared_secret: old\nturn_shared_secret_path: nowhere\nrc_message: {burst_count: 3}\n",
        {
            "TESSERA_SERVER_NAME": "other.example",
            "TESSERA_REGISTRATION_SHARED_SECRET_PATH": "secret",
            "TESSERA_TURN_SHARED_SECRET": "0123",
            "TESSERA_TURN_USERNAME": "12",
            "TESSERA_RC_MESSAGE__PER_SECOND": "7.5",
            "TESSERA_LISTENERS": "[{port: 9, resources: [{names: [client]}]}]",
            "TESSERA_DEFAULT_ROOM_VERSION": "11",
            "TESSERA_MAX_UPLOAD_SIZE": "1M",
            "TESSERA_SERVE_SERVER_WELLKNOWN": "true",
            "TESSERA_USER_IPS_MAX_AGE": "null",
            "TESSERA_ACCOUNTS_DSN": "postgresql://h/a",
            "TESSERA_TESSERA__SHARDS__ONE": "postgresql://h/b",
            "TESSERA_LOG_LEVEL": "",
            "OTHER_SERVER_NAME": "ignored",
        },
    )
    assert settings.server_name == "other.example"
    assert settings.registration_shared_secret is not None
    assert settings.registration_shared_secret.get_secret_value() == "from a file"
    assert settings.turn_shared_secret is not None
    assert settings.turn_shared_secret.get_secret_value() == "0123"
    assert settings.turn_username == "12"
    assert (settings.rc_message.per_second, settings.rc_message.burst_count) == (7.5, 3)
    assert settings.listeners[0].port == 9
    assert settings.default_room_version == "11"
    assert settings.max_upload_size == 1 << 20
    assert settings.serve_server_wellknown
    assert settings.user_ips_max_age is None
    assert settings.accounts_dsn == "postgresql://h/a"
    assert settings.shard_dsns("") == {"one": "postgresql://h/b"}
    assert settings.tessera.log_level == "info", "an empty variable counts as absent"


def test_variables_that_mean_nothing(refused: Refused) -> None:
    problems = refused(
        MINIMAL,
        {
            "TESSERA_SERVR_NAME": "x",
            "TESSERA_RC_LOGIN__ADRESS": "x",
            "TESSERA_SERVER_NAME__X": "x",
            "TESSERA_TRUSTED_KEY_SERVERS": "[",
            "TESSERA_QQQQ": "x",
        },
    )
    assert problems["TESSERA_SERVR_NAME"] == "no such setting; did you mean TESSERA_SERVER_NAME?"
    assert problems["TESSERA_RC_LOGIN__ADRESS"] == "no such setting; did you mean TESSERA_RC_LOGIN__ADDRESS?"
    assert problems["TESSERA_SERVER_NAME__X"].startswith("no such setting")
    assert problems["TESSERA_TRUSTED_KEY_SERVERS"].startswith("must be YAML")
    assert problems["TESSERA_QQQQ"] == "no such setting"


def test_what_kubernetes_adds_for_a_service_is_no_setting(read: Read) -> None:
    read(
        MINIMAL,
        {
            "TESSERA_SERVICE_HOST": "10.0.0.1",
            "TESSERA_SERVICE_PORT_HTTP": "80",
            "TESSERA_PORT": "tcp://10.0.0.1:80",
            "TESSERA_PORT_80_TCP_ADDR": "10.0.0.1",
            "TESSERA_GATEWAY_SERVICE_HOST": "10.0.0.1",
            "TESSERA_CONFIG": "/etc/homeserver.yaml",
        },
    )


def test_files_are_checked_when_asked(refused: Refused, read: Read, tmp_path: Path) -> None:
    text = MINIMAL + "app_service_config_files: [bridge.yaml]\nlog_config: log.yaml\nsigning_key_path: key\n"
    read(text)
    problems = refused(text, check_files=True)
    assert problems.keys() == {"app_service_config_files.0", "log_config", "signing_key_path"}
    (tmp_path / "key").write_text("ed25519 a not-a-seed")
    assert "line 1" in refused(text, check_files=True)["signing_key_path"]


def test_a_generated_configuration_is_valid_private_and_never_overwritten(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "data"
    path = generate_config("chat.example.org:8448", directory, 8009)
    settings = read_settings(path, {}, check_files=True)
    assert settings.server_name == "chat.example.org:8448"
    assert [listener.port for listener in settings.listeners] == [8009]
    assert not settings.enable_registration
    assert settings.uses_embedded_postgres
    assert settings.registration_shared_secret is not None
    assert len(settings.registration_shared_secret.get_secret_value()) >= 40
    [key] = load_signing_keys(settings)
    assert key.version.startswith("a_")
    assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o600}
    assert len(list(directory.iterdir())) == 2
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        generate_config("chat.example.org:8448", directory)
    assert path.read_bytes() == before
    path.unlink()
    generate_config("chat.example.org:8448", directory)
    assert load_signing_keys(read_settings(path, {})) == [key], "the key is the server's identity"


def test_each_generated_configuration_has_secrets_of_its_own(tmp_path: Path) -> None:
    first, second = (
        read_settings(generate_config("localhost", tmp_path / name, ids=IdSource.seeded(number)), {})
        for number, name in enumerate("ab")
    )
    assert first.registration_shared_secret != second.registration_shared_secret
    assert load_signing_keys(first) != load_signing_keys(second)
    assert first.public_baseurl == "http://localhost:8008/"


@pytest.mark.parametrize(("name", "port"), [("not a name", 8008), ("", 8008), ('a"\nb: c', 8008), ("a.example", 70000)])
def test_what_no_configuration_is_made_for(tmp_path: Path, name: str, port: int) -> None:
    with pytest.raises(ConfigError):
        generate_config(name, tmp_path / "data", port)
    assert not (tmp_path / "data").exists()
