"""Where log lines go and how they look; nothing here knows what is logged.

Code logs events with fields through structlog; libraries log through the standard library. Both
end in the same handlers, and every line passes `mask_secrets` on its way out.
"""

import logging
import logging.handlers
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TextIO

import structlog
import yaml
from structlog.typing import EventDict, Processor, WrappedLogger

from tessera.config import ConfigError, Problem, Settings

LogFormat = Literal["console", "json"]

MASK = "<masked>"
_OWN_LOGGERS = ("tessera", "services", "matrixcore")
# uvicorn's access log has query strings, and those may have tokens; ours is `tessera.access`.
_SILENT_LOGGERS = ("uvicorn.access",)
# They say at INFO what concerns only themselves.
_QUIET_LOGGERS = ("aiokafka", "asyncio", "uvicorn.error", "alembic", "PIL")

_SECRET_FIELD = re.compile(
    r"token|password|passphrase|secret|authorization|cookie|signing_key|credential", re.IGNORECASE
)
_SECRETS = re.compile(
    r"(?P<keep>access_token=|refresh_token=|\bBearer\s+|://[^/\s:@]*:(?=[^\s/@]+@))(?P<secret>[^\s&\"'@]+)"
    r"|\bts[ar]_[A-Za-z0-9_-]{8,}|\bsyt_[A-Za-z0-9_=-]{8,}",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file that lines are appended to.

    Attributes:
        rotate_when: the interval of TimedRotatingFileHandler ("midnight", "H"...); None for none.
        max_bytes: rotate at this size; 0 for never.
    """

    path: Path
    rotate_when: str | None = None
    interval: int = 1
    max_bytes: int = 0
    backup_count: int = 0


@dataclass(frozen=True, slots=True)
class LogSetup:
    """What is logged where.

    Attributes:
        level: of everything, in the standard library's names.
        levels: of single loggers.
        console: whether lines go to the standard error stream.
        format: None means text on a terminal and JSON elsewhere.
    """

    level: str = "INFO"
    levels: Mapping[str, str] = field(default_factory=dict)
    console: bool = True
    files: tuple[LogFile, ...] = ()
    format: LogFormat | None = None


def configure_logging(settings: Settings) -> None:
    """`set_up_logging` by the settings: what log_config says, else tessera.log_level and tessera.log_format.

    Raises:
        ConfigError: the file of log_config makes no sense, or a file of the log cannot be opened.
    """
    own = settings.tessera
    if settings.log_config is None:
        set_up_logging(LogSetup(level=own.log_level, format=own.log_format))
    else:
        setup = read_log_config(settings.log_config)
        set_up_logging(replace(setup, format=own.log_format or setup.format))


def set_up_logging(setup: LogSetup, stream: TextIO | None = None) -> None:
    """Send everything that is logged in this process where `setup` says. Once, in main.py; again replaces it.

    Args:
        stream: in place of the standard error stream.

    Raises:
        ConfigError: a file cannot be opened.
    """
    handlers: list[logging.Handler] = []
    if setup.console or not setup.files:
        stream = stream or sys.stderr
        chosen = setup.format or ("console" if stream.isatty() else "json")
        handlers.append(_with_format(logging.StreamHandler(stream), chosen, colors=stream.isatty()))
    for file in setup.files:
        # A file is read by programs or by grep; without a wish it is text, as Synapse's is.
        handlers.append(_with_format(_open(file), setup.format or "console", colors=False))
    _set_up_standard_library(setup, handlers)
    lowest = min(_number_of(level) for level in (setup.level, *setup.levels.values()))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            *_shared_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        cache_logger_on_first_use=True,
    )


def read_log_config(path: Path) -> LogSetup:
    """Take from a log_config file of Synapse what has a meaning here: levels, console, files, and JSON.

    Its filters, formats and classes are Python's `logging.config`; they are not run. `synapse` loggers stand for
    ours, `synapse.*` below it name modules that are not here and are passed over.

    Raises:
        ConfigError
    """
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _unusable(path, str(error)) from error
    if not isinstance(document, dict):
        raise _unusable(path, "must be a mapping")
    handlers = _section(document, "handlers", path)
    root = _section(document, "root", path)
    used = _reachable(root.get("handlers") or (), handlers)
    files = tuple(_file_of(one, path) for one in used if one.get("filename"))
    return LogSetup(
        level=_level_of(root, "INFO", path),
        levels=_levels_of(_section(document, "loggers", path), path),
        console=not files or any("StreamHandler" in str(one.get("class")) for one in used),
        files=files,
        format=_format_of(used, _section(document, "formatters", path)),
    )


def mask_secrets(text: str) -> str:
    """A text without what looks like a token or a password in it."""
    return _SECRETS.sub(lambda found: (found["keep"] or "") + MASK, text)


class _MaskingFormatter(structlog.stdlib.ProcessorFormatter):
    """Masks whole lines, so that tracebacks and other people's messages are covered."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_secrets(super().format(record))


def _mask_fields(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    for name in event:
        if _SECRET_FIELD.search(name):
            event[name] = MASK
    return event


def _shared_processors() -> list[Processor]:
    return [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _mask_fields,
    ]


def _with_format(handler: logging.Handler, chosen: LogFormat, *, colors: bool) -> logging.Handler:
    rendering: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if chosen == "json":
        rendering += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Plain tracebacks: the rich ones show local variables, and those may be secrets.
        rendering.append(
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)
        )
    handler.setFormatter(_MaskingFormatter(processors=rendering, foreign_pre_chain=_shared_processors()))
    return handler


def _set_up_standard_library(setup: LogSetup, handlers: Iterable[logging.Handler]) -> None:
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(_number_of(setup.level))
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, _number_of(setup.level)))
    for name, level in setup.levels.items():
        logging.getLogger(name).setLevel(_number_of(level))
    for name in _SILENT_LOGGERS:
        silent = logging.getLogger(name)
        silent.propagate = False
        silent.handlers = [logging.NullHandler()]
    logging.captureWarnings(True)


def _open(file: LogFile) -> logging.Handler:
    try:
        if file.rotate_when is not None:
            return logging.handlers.TimedRotatingFileHandler(
                file.path, file.rotate_when, file.interval, file.backup_count, encoding="utf-8"
            )
        if file.max_bytes:
            return logging.handlers.RotatingFileHandler(
                file.path, maxBytes=file.max_bytes, backupCount=file.backup_count, encoding="utf-8"
            )
        return logging.handlers.WatchedFileHandler(file.path, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unusable(file.path, str(error)) from error


def _number_of(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _unusable(path: Path, reason: str, key: str = "") -> ConfigError:
    return ConfigError(str(path), [Problem(key, reason)])


def _section(document: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    section = document.get(key) or {}
    if not isinstance(section, dict):
        raise _unusable(path, "must be a mapping", key)
    return section


def _level_of(section: Mapping[str, Any], default: str, path: Path) -> str:
    level = str(section.get("level", default)).upper()
    if level not in logging.getLevelNamesMapping():
        raise _unusable(path, f"{level} is no log level", "level")
    return level


def _levels_of(loggers: Mapping[str, Any], path: Path) -> dict[str, str]:
    levels: dict[str, str] = {}
    for name, section in loggers.items():
        if isinstance(section, dict) and "level" in section:
            level = _level_of(section, "INFO", path)
            if name == "synapse":
                levels.update(dict.fromkeys(_OWN_LOGGERS, level))
            elif not name.startswith("synapse."):
                levels[name] = level
    return levels


def _reachable(names: Iterable[Any], handlers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The handlers that the root logger writes to, through the targets of those that only buffer."""
    found: dict[str, dict[str, Any]] = {}
    waiting = [str(name) for name in names]
    while waiting:
        name = waiting.pop(0)
        handler = handlers.get(name)
        if name in found or not isinstance(handler, dict):
            continue
        found[name] = handler
        if isinstance(handler.get("target"), str):
            waiting.append(handler["target"])
    return list(found.values())


def _file_of(handler: Mapping[str, Any], path: Path) -> LogFile:
    timed = "TimedRotating" in str(handler.get("class"))
    try:
        return LogFile(
            Path(str(handler["filename"])),
            rotate_when=str(handler.get("when", "midnight")) if timed else None,
            interval=int(handler.get("interval", 1)),
            max_bytes=int(handler.get("maxBytes", 0)),
            backup_count=int(handler.get("backupCount", 0)),
        )
    except (TypeError, ValueError) as error:
        raise _unusable(path, str(error), "handlers") from error


def _format_of(used: Iterable[Mapping[str, Any]], formatters: Mapping[str, Any]) -> LogFormat | None:
    for handler in used:
        formatter = formatters.get(str(handler.get("formatter")))
        if isinstance(formatter, dict):
            made_by = str(formatter.get("class") or formatter.get("()") or "")
            return "json" if "Json" in made_by else "console"
    return None
