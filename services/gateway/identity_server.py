"""Calls of identity servers, which know whose an address is.

Spec: Identity Service API; C-S API §Adding Account Administrative Contact Information, §Third-party invites.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from matrixcore.identifiers import InvalidIdentifier, ServerName, UserId, parse_server_name, parse_user_id
from matrixcore.signing import SigningKey, encode_base64_urlsafe, sign_json
from tessera.http.errors import InvalidParam, MatrixError
from tessera.http.json_calls import CallFailed, JsonCaller

_API = "/_matrix/identity/v2"
_PROXIED = range(400, 500)
MAX_PEPPER_LENGTH = 1_024


@dataclass(frozen=True, slots=True)
class IdentityServer:
    """One identity server, as a client named it.

    Attributes:
        caller: guards against addresses of our own network.
        name: the server's name, with a port if it has one.
        token: the client's access token there; empty where this server signs instead.
    """

    caller: JsonCaller
    name: str
    token: str = ""

    @classmethod
    def named(cls, caller: JsonCaller, id_server: str, token: str = "") -> "IdentityServer":
        """Raises InvalidParam for what is no server's name."""
        name = id_server.removeprefix("https://").rstrip("/")
        try:
            parse_server_name(name)
        except InvalidIdentifier as error:
            raise InvalidParam("id_server must be the name of a server") from error
        if not token.isprintable() or not token.isascii():
            raise InvalidParam("id_access_token is no token")
        return cls(caller, name, token)

    async def bind(self, session_id: str, client_secret: str, user_id: UserId) -> tuple[str, str]:
        """Have the server publish a proven address as the user's: (medium, address).

        Raises:
            MatrixError: the server's own refusal, or 502 M_UNKNOWN where it does not answer.
        """
        body = {"sid": session_id, "client_secret": client_secret, "mxid": user_id}
        bound = await self._post("/3pid/bind", body)
        medium, address = bound.get("medium"), bound.get("address")
        if not isinstance(medium, str) or not isinstance(address, str):
            raise _nonsense()
        return medium, address

    async def unbind(self, medium: str, address: str, user_id: UserId, *, origin: ServerName, key: SigningKey) -> bool:
        """Have the server forget whose an address is, on this server's signature; False if it does not do that.

        Raises:
            MatrixError: the server does not answer (502).
        """
        body = {"mxid": user_id, "threepid": {"medium": medium, "address": address}}
        uri = f"{_API}/3pid/unbind"
        signed = sign_json(
            {"method": "POST", "uri": uri, "origin": origin, "destination": self.name, "content": body}, origin, key
        )
        (key_id, signature), *_ = signed["signatures"][origin].items()
        header = f'X-Matrix origin="{origin}",destination="{self.name}",key="{key_id}",sig="{signature}"'
        status, _ = await self._call("POST", uri, body, {"Authorization": header})
        if status == 200:
            return True
        if status in (400, 403, 404, 501):
            return False
        raise _away()

    async def lookup(self, medium: str, address: str) -> UserId | None:
        """Whose an address is, asked by its hash where the server can. Raises MatrixError."""
        details = await self._get("/hash_details")
        pepper, algorithms = details.get("lookup_pepper"), details.get("algorithms")
        if not isinstance(pepper, str) or len(pepper) > MAX_PEPPER_LENGTH or not isinstance(algorithms, list):
            raise _nonsense()
        if "sha256" not in algorithms:
            # A plain look-up would tell the server an address that its own policy may not want to know.
            raise MatrixError("The identity server knows no hashed look-up", errcode="M_UNKNOWN", status=400)
        key = encode_base64_urlsafe(sha256(f"{address} {medium} {pepper}".encode()).digest())
        body = {"addresses": [key], "algorithm": "sha256", "pepper": pepper}
        mappings = (await self._post("/lookup", body)).get("mappings")
        found = mappings.get(key) if isinstance(mappings, Mapping) else None
        try:
            return None if found is None else parse_user_id(found)
        except InvalidIdentifier as error:
            raise _nonsense() from error

    async def store_invite(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Have the server write to whoever the address is of: token, public_keys and display_name of the invite.

        Raises:
            MatrixError
        """
        return await self._post("/store-invite", body)

    async def _get(self, path: str) -> dict[str, Any]:
        return self._granted(*await self._call("GET", _API + path, None, self._bearer()))

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._granted(*await self._call("POST", _API + path, body, self._bearer()))

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]]:
        url = f"https://{self.name}{path}"
        try:
            if body is None:
                return await self.caller.get(url, headers=headers)
            return await self.caller.post(url, body, headers=headers)
        except CallFailed as error:
            raise _away() from error

    def _bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def _granted(self, status: int, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer of a success; a refusal is passed on to the client."""
        if status == 200:
            return answer
        errcode, error = answer.get("errcode"), answer.get("error")
        if status in _PROXIED and isinstance(errcode, str):
            # Not as 401: the client would take its own session for ended.
            told = error if isinstance(error, str) else "Refused by the identity server"
            raise MatrixError(told[:500], errcode=errcode[:100], status=403 if status == 401 else status)
        raise _away()


def key_validity_url(name: str) -> str:
    """Where others ask an identity server whether its key still holds."""
    return f"https://{name}{_API}/pubkey/isvalid"


def ephemeral_key_validity_url(name: str) -> str:
    """The same for the key of one invite."""
    return f"https://{name}{_API}/pubkey/ephemeral/isvalid"


def _away() -> MatrixError:
    return MatrixError("The identity server does not answer", errcode="M_UNKNOWN", status=502)


def _nonsense() -> MatrixError:
    return MatrixError("The identity server's answer makes no sense", errcode="M_UNKNOWN", status=502)
