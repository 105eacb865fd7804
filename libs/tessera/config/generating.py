"""A first homeserver.yaml with secrets of its own."""

import os
from pathlib import Path

from matrixcore.identifiers import InvalidIdentifier, parse_server_name
from matrixcore.signing import KEY_BYTES, SigningKey, write_signing_keys
from tessera.config.errors import ConfigError, Problem
from tessera.ids import IdSource

FILE_NAME = "homeserver.yaml"

_TEMPLATE = """\
# The configuration of a Tessera homeserver. The keys are Synapse's where Synapse has one.
# Relative paths start from this file's folder. Each key can also be given by an environment variable:
# TESSERA_ and the key in capitals, `__` between nested keys (TESSERA_DATABASE__ARGS__PASSWORD).
# `tessera check-config` says what is wrong with it.

# The part of user IDs after the colon: @alice:{server_name}. It can never be changed.
server_name: "{server_name}"

# Where clients reach the server from outside, told to them in /.well-known/matrix/client.
{public_baseurl}

# Answer /.well-known/matrix/server with this server's name and port 443, for a proxy that serves federation there.
#serve_server_wellknown: true

listeners:
  # Behind a reverse proxy that adds TLS and X-Forwarded-For. To serve without one, set bind_addresses to
  # ["::", "0.0.0.0"], x_forwarded to false, and tls to true with the two paths below.
  - port: {port}
    type: http
    tls: false
    x_forwarded: true
    bind_addresses: ["::1", "127.0.0.1"]
    resources:
      - names: [client, federation, media, metrics, health]

#tls_certificate_path: fullchain.pem
#tls_private_key_path: privkey.pem

# Identifies the server to all others. Keep a copy in a safe place, and never share it.
signing_key_path: "{signing_key}"

# Other servers' keys are asked for here when those servers do not answer.
trusted_key_servers:
  - server_name: matrix.org

# Whoever knows it can make accounts, administrators too: `tessera register-user`.
registration_shared_secret: "{shared_secret}"

# May anybody make an account? Both keys are needed, since such servers attract spammers.
enable_registration: false
#enable_registration_without_verification: true

# Without this key Tessera starts its own PostgreSQL and keeps its files beside this one.
#database:
#  name: psycopg2
#  args:
#    user: tessera
#    password: secret
#    dbname: tessera
#    host: localhost
#    cp_max: 10

media_store_path: media
max_upload_size: 50M

# Voice and video calls through a TURN server.
#turn_uris: ["turn:turn.example.org?transport=udp", "turn:turn.example.org?transport=tcp"]
#turn_shared_secret: "the static-auth-secret of coturn"

presence:
  enabled: true

# How often users may act. These are the defaults of the most visible limits.
#rc_message: {{per_second: 0.2, burst_count: 10}}
#rc_registration: {{per_second: 0.17, burst_count: 3}}

# Keys that are Tessera's own.
tessera:
  log_level: info
"""


def generate_config(server_name: str, data_dir: Path, port: int = 8008, *, ids: IdSource | None = None) -> Path:
    """Write homeserver.yaml and a signing key into `data_dir`, readable by their owner alone; the file's path.

    A signing key that lies there already is used, never replaced.

    Raises:
        ConfigError: the name or port is not valid, or there is a homeserver.yaml already.
        OSError: the directory cannot be written to.
    """
    ids = ids or IdSource()
    target = data_dir / FILE_NAME
    problems: list[Problem] = []
    try:
        parse_server_name(server_name)
    except InvalidIdentifier as error:
        problems.append(Problem("server_name", str(error)))
    if not 0 <= port <= 65535:
        problems.append(Problem("port", "must be between 0 and 65535"))
    if target.exists():
        problems.append(Problem("", "exists already and is left as it is"))
    if problems:
        raise ConfigError(str(target), problems)
    # The embedded PostgreSQL of root's servers runs under another account, which must pass here.
    data_dir.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    key_name = f"{server_name.replace(':', '_')}.signing.key"
    key = SigningKey(version=f"a_{ids.letters(4)}", seed=ids.random_bytes(KEY_BYTES))
    _write_new(data_dir / key_name, write_signing_keys([key]))
    text = _TEMPLATE.format(
        server_name=server_name,
        public_baseurl=_public_baseurl(server_name, port),
        port=port,
        signing_key=key_name,
        shared_secret=ids.token(32),
    )
    if not _write_new(target, text):
        raise ConfigError(str(target), [Problem("", "exists already and is left as it is")])
    return target


def _public_baseurl(server_name: str, port: int) -> str:
    host = server_name.partition(":")[0]
    # On one's own machine there is no proxy, so the address is known.
    return f'public_baseurl: "http://localhost:{port}/"' if host == "localhost" else f"#public_baseurl: https://{host}/"


def _write_new(path: Path, text: str) -> bool:
    """Write a file with mode 0600, whole or not at all; False if it exists already."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(unfinished, path)  # unlike a rename it fails when the name is taken
    except FileExistsError:
        return False
    finally:
        unfinished.unlink()
    return True
