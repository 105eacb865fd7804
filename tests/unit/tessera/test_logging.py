import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tessera.config import ConfigError, Settings
from tessera.logging import LogFile, LogSetup, configure_logging, mask_secrets, read_log_config, set_up_logging

SYNAPSE_SAMPLE = """
version: 1
formatters:
  precise:
    format: '%(asctime)s - %(name)s - %(lineno)d - %(levelname)s - %(request)s - %(message)s'
filters:
  context: {(): synapse.logging.context.LoggingContextFilter}
handlers:
  file:
    class: logging.handlers.TimedRotatingFileHandler
    formatter: precise
    filename: FILENAME
    when: midnight
    backupCount: 3
    encoding: utf8
  buffer:
    class: synapse.logging.handlers.PeriodicallyFlushingMemoryHandler
    target: file
    capacity: 10
  console:
    class: logging.StreamHandler
    formatter: precise
loggers:
  synapse.storage.SQL: {level: INFO}
  synapse: {level: DEBUG}
  aiokafka: {level: ERROR}
  twisted: {handlers: [file], propagate: false}
root:
  level: WARNING
  handlers: [buffer]
disable_existing_loggers: false
"""


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:
        root.removeHandler(handler)  # set_up_logging closes what it finds; pytest's own must live on
    names = ("tessera", "services", "matrixcore", "aiokafka", "asyncio", "uvicorn.error", "alembic", "PIL")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = [], True


def lines_of(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_events_of_both_kinds_become_json_lines() -> None:
    stream = io.StringIO()
    set_up_logging(LogSetup(), stream)
    structlog.get_logger("tessera.x").info("room joined", room_id="!a:x", position=7)
    structlog.get_logger("tessera.x").debug("too much")
    logging.getLogger("library").warning("it said %s", "hello")
    first, second = lines_of(stream)
    assert first["event"] == "room joined"
    assert (first["room_id"], first["position"], first["level"], first["logger"]) == ("!a:x", 7, "info", "tessera.x")
    assert str(first["timestamp"]).endswith("Z")
    assert (second["event"], second["logger"]) == ("it said hello", "library")


def test_secrets_do_not_come_out() -> None:
    stream = io.StringIO()
    set_up_logging(LogSetup(), stream)
    log = structlog.get_logger("tessera.x")
    log.info("login", access_token="tsa_abcdefghij", Password="hunter2", user_id="@a:x")
    log.info("GET /x?access_token=abcdef&b=1 with Authorization: Bearer s3cr3t-token")
    logging.getLogger("library").error("cannot reach postgresql://tessera:hunter2@db/x")
    try:
        raise ValueError("token tsr_0123456789abc is used")
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    for secret in ("tsa_abc", "hunter2", "abcdef", "s3cr3t", "tsr_0123"):
        assert secret not in text
    assert "&b=1" in text
    assert "@a:x" in text
    assert "ValueError" in text
    assert all(lines_of(stream))


def test_masking_keeps_what_is_no_secret() -> None:
    plain = "event $abc:x in !room:x by @tsa:x, https://x.org:8448/path, since=s1_2"
    assert mask_secrets(plain) == plain


def test_the_console_form_has_no_local_variables() -> None:
    stream = io.StringIO()
    set_up_logging(LogSetup(format="console"), stream)
    try:
        hidden = "do not show me"
        raise RuntimeError("x" * len(hidden))
    except RuntimeError:
        structlog.get_logger("tessera.x").exception("failed", operation="send_message")
    assert "do not show me" not in stream.getvalue().replace('hidden = "do not show me"', "")
    assert "operation=send_message" in stream.getvalue()
    assert "RuntimeError" in stream.getvalue()


def test_levels_of_single_loggers() -> None:
    stream = io.StringIO()
    set_up_logging(LogSetup(level="warning", levels={"tessera.http": "debug"}), stream)
    structlog.get_logger("tessera.http.app").debug("seen")
    structlog.get_logger("tessera.storage").info("unseen")
    logging.getLogger("uvicorn.access").error("GET /?access_token=x")
    assert [line["event"] for line in lines_of(stream)] == ["seen"]


def test_a_log_config_of_synapse(tmp_path: Path) -> None:
    config, file = tmp_path / "log.yaml", tmp_path / "homeserver.log"
    config.write_text(SYNAPSE_SAMPLE.replace("FILENAME", str(file)))
    setup = read_log_config(config)
    assert setup.level == "WARNING"
    assert setup.levels["tessera"] == setup.levels["services"] == "DEBUG"
    assert setup.levels["aiokafka"] == "ERROR"
    assert not any(name.startswith("synapse") for name in setup.levels)
    assert setup.files == (LogFile(file, rotate_when="midnight", backup_count=3),)
    assert (setup.console, setup.format) == (False, "console")
    set_up_logging(setup)
    structlog.get_logger("tessera.x").debug("into the file", room_id="!a:x")
    assert "into the file" in file.read_text()
    assert "room_id=!a:x" in file.read_text()


def test_a_json_formatter_of_synapse(tmp_path: Path) -> None:
    config = tmp_path / "log.yaml"
    config.write_text(
        "formatters: {structured: {class: synapse.logging.TerseJsonFormatter}}\n"
        "handlers: {out: {class: logging.StreamHandler, formatter: structured}}\n"
        "root: {level: INFO, handlers: [out]}\n"
    )
    assert read_log_config(config) == LogSetup(level="INFO", format="json")


@pytest.mark.parametrize("text", ["[]", "a: [", "root: 3", "root: {level: LOUD}", "handlers: x"])
def test_a_log_config_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    config = tmp_path / "log.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=r"log\.yaml"):
        read_log_config(config)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        read_log_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="absent"):
        set_up_logging(LogSetup(files=(LogFile(tmp_path / "absent" / "x.log"),)))


def test_the_settings_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings.for_tests(tessera={"log_level": "error", "log_format": "json"}))
    structlog.get_logger("tessera.x").warning("unseen")
    structlog.get_logger("tessera.x").error("seen")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["seen"]
    config, file = tmp_path / "log.yaml", tmp_path / "homeserver.log"
    config.write_text(SYNAPSE_SAMPLE.replace("FILENAME", str(file)))
    configure_logging(Settings.for_tests(log_config=config, tessera={"log_format": "json"}))
    structlog.get_logger("tessera.x").debug("into the file")
    assert json.loads(file.read_text())["event"] == "into the file"
