"""Password hashes: argon2id, and bcrypt hashes of accounts that came from elsewhere.

Hashing takes tens of milliseconds and much memory on purpose, so it runs in a small pool of threads
(both libraries let the interpreter go on meanwhile) behind a bounded queue.
"""

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import bcrypt
from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from tessera.http.errors import LimitExceeded

T = TypeVar("T")

MAX_PASSWORD_BYTES = 1024  # longer ones are not worth the time to hash them
_BCRYPT_BYTES = 72  # bcrypt looks at no more
_NOBODY = "nobody's password"


class Passwords:
    """Makes and checks password hashes.

    Args:
        workers: threads; each takes `memory_kib` while it hashes.
        waiting_limit: how many requests may wait for a thread before others are told to come back.
        time_cost, memory_kib: of argon2id; the defaults are OWASP's for one lane.
        bcrypt_pepper: Synapse's password_config.pepper, part of the bcrypt hashes that it made.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        waiting_limit: int = 256,
        time_cost: int = 2,
        memory_kib: int = 19_456,
        bcrypt_pepper: str = "",
    ) -> None:
        self._hasher = PasswordHasher(time_cost=time_cost, memory_cost=memory_kib, parallelism=1, type=Type.ID)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="passwords")
        self._places = workers + waiting_limit
        self._pepper = bcrypt_pepper
        self._dummy_hash: str | None = None

    def close(self) -> None:
        """Let the threads end; nothing may be hashed afterwards."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        """The hash to store for a new password.

        Raises:
            LimitExceeded: too many requests wait for a thread already.
        """
        return await self._run(self._hash, password)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether it is the password of this hash; with None it takes as long and is never right.

        Raises:
            LimitExceeded: too many requests wait for a thread already.
        """
        return await self._run(self._verify, password, password_hash)

    def needs_rehash(self, password_hash: str) -> bool:
        """Whether the hash was made by bcrypt or with other costs than today's."""
        return not password_hash.startswith("$argon2") or self._hasher.check_needs_rehash(password_hash)

    async def _run(self, work: Callable[..., T], *args: str | None) -> T:
        if self._places == 0:
            raise LimitExceeded(retry_after_ms=1_000)
        self._places -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)
        finally:
            self._places += 1

    def _hash(self, password: str) -> str:
        return self._hasher.hash(_normalise(password))

    def _verify(self, password: str, password_hash: str | None) -> bool:
        known = password_hash is not None
        if password_hash is None:
            if self._dummy_hash is None:
                self._dummy_hash = self._hasher.hash(_NOBODY)
            password_hash = self._dummy_hash
        secret = _normalise(password)
        try:
            if password_hash.startswith("$2"):
                peppered = secret + self._pepper.encode()
                return bcrypt.checkpw(peppered[:_BCRYPT_BYTES], password_hash.encode())
            return self._hasher.verify(password_hash, secret) and known
        except (VerificationError, InvalidHashError, ValueError):
            return False


def _normalise(password: str) -> bytes:
    # The same characters typed on two systems are the same password.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
