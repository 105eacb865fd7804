"""Telling push gateways: bounded in time and bytes, and never in a network that the operator closes.

Spec: Push Gateway API, POST /_matrix/push/v1/notify.
"""

from collections.abc import Sequence
from typing import Any

import aiohttp
import orjson

from tessera.config.values import Network
from tessera.http.address_guard import AddressGuard

REQUEST_SECONDS = 10.0
MAX_REPLY_BYTES = 64 * 1024
MAX_RETRY_AFTER_SECONDS = 3_600.0


class GatewayFailed(Exception):
    """The gateway did not take a notification.

    Attributes:
        retry_after: seconds that it asks for.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class GatewayClient:
    """Posts notifications. Close it at the end.

    Args:
        blocked, allowed: networks, as `AddressGuard` takes them.
    """

    def __init__(self, *, blocked: Sequence[Network], allowed: Sequence[Network], connections: int) -> None:
        guard = AddressGuard(blocked, allowed, only_public=False)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, use_dns_cache=False, socket_factory=guard.open_socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": "Tessera (Matrix homeserver; push)", "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def notify(self, url: str, notification: dict[str, Any]) -> list[str]:
        """Send one notification; the pushkeys that are to be used no longer.

        Raises:
            GatewayFailed: it is to be tried again later.
        """
        body = orjson.dumps({"notification": notification})
        try:
            async with self._session.post(
                url, data=body, headers={"Content-Type": "application/json"}, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise GatewayFailed(f"status {response.status}", _retry_after(response))
                reply = bytearray()
                async for piece in response.content.iter_chunked(MAX_REPLY_BYTES):
                    reply += piece
                    if len(reply) > MAX_REPLY_BYTES:
                        raise GatewayFailed("the answer is too large")
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise GatewayFailed(type(error).__name__) from error
        return _rejected(bytes(reply))


def _retry_after(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), MAX_RETRY_AFTER_SECONDS) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0


def _rejected(reply: bytes) -> list[str]:
    try:
        keys = orjson.loads(reply).get("rejected", [])
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise GatewayFailed("the answer is no JSON object") from error
    return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []
