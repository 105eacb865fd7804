"""A new signing key in place of the old one, which stays good for what it has signed.

The account store learns of both first, so that whatever happens then nobody signs with a key that is not published.
Processes go on with the old key until they are started anew, hence the grace.

Spec: S-S API §Publishing Keys.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from matrixcore.identifiers import ServerName
from matrixcore.server_keys import ServerKey
from matrixcore.signing import SigningKey, write_signing_keys
from tessera.federation.own_keys import ALWAYS
from tessera.storage.database import Database
from tessera.storage.server_keys import set_server_keys


async def rotate_signing_key(
    accounts: Database,
    server_name: ServerName,
    key_file: Path,
    *,
    old: Sequence[SigningKey],
    new: SigningKey,
    retired_at_ms: int,
) -> None:
    """Publish a new key, retire the old ones, and write the new one into the key file.

    May be repeated after a failure, with another new key: one that was never written anywhere signs nothing.

    Args:
        old: what stands in the file now.
        retired_at_ms: until when the old ones may still sign, in milliseconds since the epoch.

    Raises:
        OSError: the file cannot be replaced; it is as it was.
        DatabaseUnavailable
    """
    keys = {key.key_id: ServerKey(key.public_key, retired_at_ms, is_old=True) for key in old}
    keys[new.key_id] = ServerKey(new.public_key, ALWAYS)
    unfinished = _write_beside(key_file, write_signing_keys([new]))
    try:
        async with accounts.transaction() as tx:
            await set_server_keys(tx, {server_name: keys})
        unfinished.replace(key_file)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_beside(file: Path, text: str) -> Path:
    """A file that may take the place of another, with the same owner and mode."""
    was = file.stat()
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    unfinished.chmod(was.st_mode & 0o777)
    if (was.st_uid, was.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(unfinished, was.st_uid, was.st_gid)
    return unfinished
