"""The keys of this server, as others see them.

The key file of a process says with what it signs. Which keys the server used before, and which one other processes
use already, stands in the account store (`tessera rotate-signing-key`) and in old_signing_keys.

Spec: S-S API §Publishing Keys.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from matrixcore.identifiers import ServerName
from matrixcore.server_keys import ServerKey, make_key_document
from matrixcore.signing import SigningKey
from tessera.clock import Clock
from tessera.storage.database import Database, DatabaseUnavailable
from tessera.storage.server_keys import list_server_keys

# Keys in use are believed by ourselves for ever: whoever has them can sign as us anyway.
ALWAYS = 2**53 - 1
REREAD_SECONDS = 60.0


class OwnKeys:
    """What this server signs with, and what it signed with.

    Args:
        signing_keys: of this process; the first one signs.
        configured_old: key ID -> key, from the configuration.
        validity_ms: for so long others may remember a document.
    """

    def __init__(
        self,
        server_name: ServerName,
        signing_keys: Sequence[SigningKey],
        accounts: Database,
        clock: Clock,
        *,
        configured_old: Mapping[str, ServerKey],
        validity_ms: int,
    ) -> None:
        self.server_name = server_name
        self.signing_key = signing_keys[0]
        self._signing_keys = tuple(signing_keys)
        self._accounts = accounts
        self._clock = clock
        self._configured_old = dict(configured_old)
        self._validity_ms = validity_ms
        self._stored: Mapping[str, ServerKey] = {}
        self._read_at = float("-inf")
        self._document: dict[str, Any] | None = None
        self._reading = asyncio.Lock()

    async def list_keys(self) -> dict[str, ServerKey]:
        """Key ID -> key, of now and of before."""
        await self._reread()
        own = {key.key_id: ServerKey(key.public_key, ALWAYS) for key in self._signing_keys}
        return {**self._configured_old, **self._stored, **own}

    async def document(self) -> dict[str, Any]:
        """What other servers are told, signed."""
        await self._reread()
        if self._document is None:
            known = {**self._configured_old, **self._stored}
            self._document = make_key_document(
                self.server_name,
                self._signing_keys,
                current={key_id: key.public_key for key_id, key in known.items() if not key.is_old},
                old={key_id: (key.public_key, key.valid_until_ts) for key_id, key in known.items() if key.is_old},
                valid_until_ts=self._clock.now_ms() + self._validity_ms,
            )
        return self._document

    async def _reread(self) -> None:
        """Look once a minute; while the account store is away, what was read last counts."""
        async with self._reading:
            now = self._clock.monotonic()
            if now - self._read_at < REREAD_SECONDS:
                return
            try:
                async with self._accounts.reading() as tx:
                    stored = await list_server_keys(tx, [self.server_name])
            except DatabaseUnavailable:
                if self._read_at == float("-inf"):
                    raise
            else:
                self._stored = stored.get(self.server_name, {})
            self._read_at, self._document = now, None
