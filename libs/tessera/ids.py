"""Random tokens and names. Whoever needs one takes an `IdSource` as an argument."""

import base64
import random
import secrets
import string
import uuid
from collections.abc import Callable

_LETTERS = string.ascii_letters
_CAPITALS = string.ascii_uppercase


class IdSource:
    """Unguessable names from the system's random source; `seeded` gives a repeatable one for tests."""

    def __init__(self, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._random_bytes = random_bytes

    @classmethod
    def seeded(cls, seed: int) -> "IdSource":
        """An IdSource that gives the same names in the same order each time. Never for a server."""
        return cls(random.Random(seed).randbytes)  # noqa: S311 -- repeatable on purpose, for tests

    def random_bytes(self, count: int) -> bytes:
        return self._random_bytes(count)

    def token(self, byte_count: int = 24) -> str:
        """URL-safe text that holds `byte_count` random bytes (24 bytes are 32 characters)."""
        return base64.urlsafe_b64encode(self._random_bytes(byte_count)).rstrip(b"=").decode("ascii")

    def letters(self, length: int) -> str:
        """`length` letters of a-z and A-Z, 5.7 bits each."""
        return self._pick(_LETTERS, length)

    def access_token(self) -> str:
        """A client's access token, 192 random bits; the prefix lets secret scanners recognise it."""
        return f"tsa_{self.token(24)}"

    def refresh_token(self) -> str:
        return f"tsr_{self.token(24)}"

    def device_id(self) -> str:
        """Ten capitals, as people know them from their clients' lists of devices."""
        return self._pick(_CAPITALS, 10)

    def media_id(self) -> str:
        """24 letters: what a media ID may hold everywhere, and long enough not to be guessed."""
        return self.letters(24)

    def session_id(self) -> str:
        """The ID of an interactive authentication, a sign-in or another session kept for a client."""
        return self.letters(24)

    def localpart(self) -> str:
        """The localpart of a user who asked for none, or of a guest."""
        return self._pick(string.ascii_lowercase + string.digits, 12)

    def uuid(self) -> str:
        return str(uuid.UUID(bytes=self._random_bytes(16), version=4))

    def fraction(self) -> float:
        """A number in [0, 1), for jitter."""
        return int.from_bytes(self._random_bytes(6), "big") / (1 << 48)

    def _pick(self, alphabet: str, length: int) -> str:
        # Bytes at or above the largest multiple are dropped, so that every character is equally likely.
        limit = 256 - 256 % len(alphabet)
        picked: list[str] = []
        while len(picked) < length:
            picked += [alphabet[byte % len(alphabet)] for byte in self._random_bytes(length) if byte < limit]
        return "".join(picked[:length])
