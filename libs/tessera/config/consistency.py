"""What only shows when several keys are looked at together, or the files that they name."""

import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from matrixcore.policy_servers import POLICY_KEY_ID
from matrixcore.signing import InvalidKey, SigningKey, read_signing_keys
from tessera.appservices import AppServices, InvalidRegistration, read_registrations
from tessera.config.errors import ConfigError, Problem
from tessera.config.settings import Settings

_MAX_KEY_FILE_BYTES = 64 << 10


def joint_problems(settings: Settings) -> list[Problem]:
    """Contradictions between keys."""
    problems: list[Problem] = []
    if not settings.listeners:
        problems.append(Problem("listeners", "must name at least one"))
    if any(listener.tls for listener in settings.listeners):
        for key in ("tls_certificate_path", "tls_private_key_path"):
            if getattr(settings, key) is None:
                problems.append(Problem(key, "is required, since a listener has tls: true"))
    seen: set[tuple[str, int]] = set()
    for number, listener in enumerate(settings.listeners):
        if listener.path is not None:
            if (str(listener.path), 0) in seen:
                problems.append(Problem(f"listeners.{number}.path", "another listener has the same path"))
            seen.add((str(listener.path), 0))
            continue
        places = {(address, listener.port) for address in listener.bind_addresses if listener.port != 0}
        if places & seen:
            problems.append(Problem(f"listeners.{number}.port", "another listener has the same port and address"))
        seen |= places
    if (
        settings.enable_registration
        and not settings.enable_registration_without_verification
        and not settings.registration_is_verified
    ):
        problems.append(
            Problem(
                "enable_registration",
                "opens the server to everybody, spammers too; say that it is meant with "
                "enable_registration_without_verification: true, or set it to false",
            )
        )
    problems += _account_problems(settings)
    if settings.tessera.shards and settings.accounts_dsn is None:
        problems.append(Problem("tessera.shards", "needs tessera.accounts_dsn (or database)"))
    pool = settings.pool
    if pool.min_size > pool.max_size:
        where = "tessera.pool.min_size" if settings.tessera.pool is not None else "database.args.cp_min"
        problems.append(Problem(where, "is larger than the maximum"))
    return problems


def _is_fit_for_browsers(url: str | None) -> bool:
    parts = urlsplit(url or "")
    is_safe = parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")
    return is_safe and parts.path == "/" and not parts.query and not parts.fragment


def _account_problems(settings: Settings) -> Iterator[Problem]:
    """Ways to prove oneself that lack what they need."""
    if not settings.password_config.enabled and not settings.oidc_providers:
        yield Problem("password_config.enabled", "cannot be false without oidc_providers: nobody could log in")
    if not settings.password_config.enabled and settings.enable_registration:
        yield Problem("enable_registration", "makes accounts with passwords, and password_config.enabled is false")
    if settings.enable_registration_captcha:
        for key in ("recaptcha_public_key", "recaptcha_private_key"):
            if getattr(settings, key) is None:
                yield Problem(key, "is required, since enable_registration_captcha is true")
    if settings.tessera.oauth.enabled and not _is_fit_for_browsers(settings.public_baseurl):
        yield Problem("public_baseurl", "must be https without a path, as tessera.oauth.enabled leads people there")
    if settings.email is not None and settings.public_baseurl is None:
        yield Problem("public_baseurl", "is required, since mails (email) lead to it")
    if "email" in settings.registrations_require_3pid and settings.email is None:
        yield Problem("registrations_require_3pid", "wants e-mail addresses; how mail is sent says the key email")
    if "msisdn" in settings.registrations_require_3pid and settings.account_threepid_delegates.msisdn is None:
        yield Problem("registrations_require_3pid", "wants telephone numbers, and account_threepid_delegates.msisdn")
    for number, rule in enumerate(settings.allowed_local_3pids):
        try:
            re.compile(rule.pattern)
        except re.error as error:
            yield Problem(f"allowed_local_3pids.{number}.pattern", f"is no regular expression: {error}")


def file_problems(settings: Settings) -> list[Problem]:
    """Files that the configuration names and that cannot be used."""
    problems = [
        Problem(key, f"{path} cannot be read: {reason}")
        for key, path in _named_files(settings)
        if (reason := _why_unreadable(path)) is not None
    ]
    if not problems:
        problems.extend(_certificate_problems(settings))
        try:
            load_appservices(settings)
        except ConfigError as error:
            problems.extend(error.problems)
    for load in (load_signing_keys, load_policy_key):
        try:
            load(settings)
        except ConfigError as error:
            problems.extend(error.problems)
    return problems


def _certificate_problems(settings: Settings) -> Iterator[Problem]:
    certificate, key = settings.tls_certificate_path, settings.tls_private_key_path
    if certificate is None or key is None or not any(listener.tls for listener in settings.listeners):
        return
    try:
        # With a password, though a wrong one, nobody is asked for it at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=str)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        yield Problem("tls_certificate_path", f"{certificate} with the key {key} cannot be used: {reason}")


def load_appservices(settings: Settings) -> AppServices:
    """The application services that the files of app_service_config_files register.

    Raises:
        ConfigError: a file cannot be used.
    """
    try:
        return read_registrations(settings.app_service_config_files, settings.server_name)
    except InvalidRegistration as error:
        problem = Problem("app_service_config_files", str(error))
        raise ConfigError("application services", [problem]) from None


def load_signing_keys(settings: Settings) -> list[SigningKey]:
    """The server's own keys, from signing_key or the key file; the first one signs.

    Raises:
        ConfigError: there is none, or what stands there is no key.
    """
    if settings.signing_key is None:
        return _read_key_file(settings.signing_key_file, "signing_key_path")
    try:
        return read_signing_keys(settings.signing_key.get_secret_value())
    except InvalidKey as error:
        raise ConfigError("signing key", [Problem("signing_key", str(error))]) from None


def load_policy_key(settings: Settings) -> SigningKey | None:
    """The key with which this server recommends events; None if it is no policy server.

    Raises:
        ConfigError: it cannot be read, or is the server's own.
    """
    if (policy := settings.tessera.policy_server) is None:
        return None
    name = "tessera.policy_server.signing_key_path"
    key = _read_key_file(policy.signing_key_path, name)[0]
    if any(key.seed == own.seed for own in load_signing_keys(settings)):
        raise ConfigError("signing key", [Problem(name, "must not be the key with which the server signs its events")])
    return SigningKey(POLICY_KEY_ID.partition(":")[2], key.seed)


def _read_key_file(path: Path, name: str) -> list[SigningKey]:
    try:
        with path.open("rb") as file:
            return read_signing_keys(file.read(_MAX_KEY_FILE_BYTES).decode())
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror}"
    except InvalidKey as error:
        reason = f"{path}: {error}"
    except UnicodeDecodeError:
        reason = f"{path} is no key file"
    raise ConfigError("signing key", [Problem(name, reason)])


def _named_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    for key in ("tls_certificate_path", "tls_private_key_path", "log_config"):
        path = getattr(settings, key)
        if path is not None:
            yield key, path
    redis = settings.tessera.redis
    if redis is not None and redis.tls_ca_path is not None:
        yield "tessera.redis.tls_ca_path", redis.tls_ca_path
    for key in ("app_service_config_files", "federation_custom_ca_list"):
        for number, path in enumerate(getattr(settings, key)):
            yield f"{key}.{number}", path
    for key in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        path = getattr(settings.tessera.kafka, key, None)
        if path is not None:
            yield f"tessera.kafka.{key}", path


def _why_unreadable(path: Path) -> str | None:
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return error.strerror
