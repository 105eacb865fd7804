"""Telephone numbers are proven by an identity server of the operator's choice (account_threepid_delegates.msisdn).

Spec: Identity Service API §Phone number associations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.gateway.address_validation import Proven, not_supported
from services.gateway.threepid_addresses import MSISDN_MEDIUM, client_secret_of, required_text
from tessera.http.errors import MatrixError, Unavailable
from tessera.http.json_calls import CallFailed, JsonCaller
from tessera.http.limits import RateLimits

_API = "/_matrix/identity/api/v1"
_FIELDS = ("client_secret", "country", "phone_number", "send_attempt", "next_link")


@dataclass(frozen=True, slots=True)
class TelephoneDelegate:
    """Asks the delegate; without a URL there is none, and no number can be proven."""

    caller: JsonCaller
    url: str | None
    limits: RateLimits

    async def request_token(self, body: Mapping[str, Any], client_address: str) -> dict[str, Any]:
        """Have the delegate send a message: its sid and submit_url.

        Raises:
            MatrixError: there is no delegate, or it refuses.
            Unavailable: it does not answer.
        """
        client_secret_of(body)
        for name in ("country", "phone_number"):
            required_text(body, name)
        if self.url is None:
            raise not_supported("telephone numbers")
        self.limits.check("rc_3pid_validation", client_address)
        asked = {name: body[name] for name in _FIELDS if name in body}
        try:
            status, answer = await self.caller.post(f"{self.url}{_API}/validate/msisdn/requestToken", asked)
        except CallFailed as error:
            raise Unavailable("Telephone numbers cannot be proven now") from error
        if status != 200 or not isinstance(answer.get("sid"), str):
            raise MatrixError("The telephone number was refused", errcode="M_THREEPID_AUTH_FAILED", status=400)
        return {name: answer[name] for name in ("sid", "submit_url") if isinstance(answer.get(name), str)}

    async def find_proof(self, session_id: str, client_secret: str) -> Proven | None:
        """The number that was proven in a session of the delegate. Raises Unavailable."""
        if self.url is None:
            return None
        params = {"sid": session_id, "client_secret": client_secret}
        try:
            status, answer = await self.caller.get(f"{self.url}{_API}/3pid/getValidated3pid", params=params)
        except CallFailed as error:
            raise Unavailable("Telephone numbers cannot be proven now") from error
        address, validated_ts = answer.get("address"), answer.get("validated_at")
        if status != 200 or answer.get("medium") != MSISDN_MEDIUM:
            return None
        if not isinstance(address, str) or not isinstance(validated_ts, int):
            return None
        return Proven(session_id, MSISDN_MEDIUM, address, validated_ts)
