"""What this server asks of a provider of identities: its metadata and keys, tokens for codes, claims.

Spec: OpenID Connect Core 1.0, OpenID Connect Discovery 1.0, RFC 6749, RFC 7636 (PKCE).
"""

import asyncio
import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

from services.gateway.sso_id_tokens import (
    DEFAULT_ALGORITHMS,
    Expected,
    InvalidIdToken,
    PublicKey,
    UnknownKey,
    check_id_token,
    read_keys,
)
from tessera.clock import Clock
from tessera.config import Settings
from tessera.config.single_sign_on import OidcProvider
from tessera.http.json_calls import CallFailed, JsonCaller

SSO = "m.login.sso"
# Synapse's path, so that what is registered with providers holds.
CALLBACK_PATH = "/_synapse/client/oidc/callback"

METADATA_SECONDS = 3_600.0
KEYS_SECONDS = 3_600.0
RETRY_SECONDS = 5.0  # so long nobody waits anew for a provider that did not answer
MAX_TEXT = 300  # of what a provider says, in logs


class ProviderFailed(Exception):
    """The provider does not answer, or not as it should; the text is for logs."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """Where the provider's endpoints are, and what it can do."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str | None
    jwks_uri: str | None
    algorithms: tuple[str, ...]
    knows_pkce: bool
    names_issuer: bool  # in its answers to browsers, RFC 9207


class ProviderClient:
    """Calls of one provider. Metadata and keys are kept for an hour; for an unknown key they are fetched once more."""

    def __init__(self, provider: OidcProvider, caller: JsonCaller, clock: Clock) -> None:
        self.provider = provider
        self._caller = caller
        self._clock = clock
        self._metadata: tuple[float, Metadata] | None = None
        self._keys: tuple[float, list[PublicKey]] | None = None
        self._failure: tuple[float, str] = (0.0, "")
        self._lock = asyncio.Lock()

    async def metadata(self) -> Metadata:
        """The provider's metadata; what is known from earlier if it does not answer now.

        Raises:
            ProviderFailed
        """
        async with self._lock:  # of many who sign in at once, one asks
            now = self._clock.monotonic()
            if self._metadata is not None and now < self._metadata[0]:
                return self._metadata[1]
            try:
                if now < self._failure[0]:
                    raise ProviderFailed(self._failure[1])
                fresh = read_metadata(self.provider, await self._discover() if self.provider.discover else {})
            except ProviderFailed as error:
                if now >= self._failure[0]:
                    self._failure = (self._clock.monotonic() + RETRY_SECONDS, str(error))
                if self._metadata is None:
                    raise
                return self._metadata[1]
            self._metadata = (self._clock.monotonic() + METADATA_SECONDS, fresh)
            return fresh

    async def authorization_url(
        self, *, redirect_uri: str, state: str, nonce: str, code_verifier: str, is_fresh: bool
    ) -> str:
        """Where a browser is sent to sign in.

        Args:
            is_fresh: whoever is signed in at the provider already is to prove it anew.

        Raises:
            ProviderFailed
        """
        metadata = await self.metadata()
        params = {
            **self.provider.additional_authorization_parameters,
            "response_type": "code",
            "client_id": self.provider.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self.provider.scopes),
            "state": state,
        }
        if self.provider.uses_id_tokens:
            params["nonce"] = nonce
            if is_fresh:
                params["prompt"] = "login"
        if self._uses_pkce(metadata):
            params["code_challenge"] = code_challenge(code_verifier)
            params["code_challenge_method"] = "S256"
        joint = "&" if urlsplit(metadata.authorization_endpoint).query else "?"
        return f"{metadata.authorization_endpoint}{joint}{urlencode(params)}"

    async def fetch_claims(
        self, *, code: str, redirect_uri: str, nonce: str, code_verifier: str, now_ms: int
    ) -> dict[str, Any]:
        """What the provider says of whoever came back with a code.

        Raises:
            ProviderFailed: it does not answer, or refuses the code.
            InvalidIdToken: what it says cannot be believed.
        """
        metadata = await self.metadata()
        tokens = await self._exchange(metadata, code, redirect_uri, code_verifier)
        claims: dict[str, Any] = {}
        if self.provider.uses_id_tokens:
            token = tokens.get("id_token")
            if not isinstance(token, str):
                raise InvalidIdToken("the provider gave none")
            expected = Expected(
                metadata.issuer, self.provider.client_id, nonce, metadata.algorithms, now_s=now_ms // 1000
            )
            claims = await self._check(metadata, token, expected)
        if not self.provider.asks_userinfo:
            return claims
        found = await self._fetch_userinfo(metadata, tokens.get("access_token"))
        # An access token may have been put under another's ID token: OpenID Connect Core, §5.3.2.
        if self.provider.uses_id_tokens and found.get("sub") != claims["sub"]:
            raise InvalidIdToken("the user info is another's")
        return {**claims, **found}

    async def _discover(self) -> dict[str, Any]:
        return await self._get(f"{self.provider.issuer.rstrip('/')}/.well-known/openid-configuration")

    async def _exchange(self, metadata: Metadata, code: str, redirect_uri: str, code_verifier: str) -> dict[str, Any]:
        provider = self.provider
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        if self._uses_pkce(metadata):
            form["code_verifier"] = code_verifier
        headers = {"Accept": "application/json"}
        secret = "" if provider.client_secret is None else provider.client_secret.get_secret_value()
        if provider.client_auth_method == "client_secret_basic":
            pair = f"{quote_plus(provider.client_id)}:{quote_plus(secret)}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            form["client_id"] = provider.client_id
            if provider.client_auth_method == "client_secret_post":
                form["client_secret"] = secret
        try:
            status, answer = await self._caller.post_form(metadata.token_endpoint, form, headers=headers)
        except CallFailed as error:
            raise ProviderFailed(f"token endpoint: {error}") from error
        if status != 200 or "error" in answer:
            said = f"{answer.get('error')}: {answer.get('error_description')}"
            raise ProviderFailed(f"token endpoint: status {status}, {said[:MAX_TEXT]!r}")
        return answer

    async def _check(self, metadata: Metadata, token: str, expected: Expected) -> dict[str, Any]:
        try:
            return check_id_token(token, await self._load_keys(metadata, fresh=False), expected)
        except UnknownKey:  # the provider may have new ones
            return check_id_token(token, await self._load_keys(metadata, fresh=True), expected)

    async def _load_keys(self, metadata: Metadata, *, fresh: bool) -> list[PublicKey]:
        if not fresh and self._keys is not None and self._clock.monotonic() < self._keys[0]:
            return self._keys[1]
        if metadata.jwks_uri is None:
            raise ProviderFailed("it names no jwks_uri")
        keys = read_keys(await self._get(metadata.jwks_uri))
        self._keys = (self._clock.monotonic() + KEYS_SECONDS, keys)
        return keys

    async def _fetch_userinfo(self, metadata: Metadata, access_token: object) -> dict[str, Any]:
        if metadata.userinfo_endpoint is None:
            raise ProviderFailed("it names no userinfo_endpoint")
        if not isinstance(access_token, str) or not access_token.isascii() or not access_token.isprintable():
            raise ProviderFailed("it gave no access token")
        return await self._get(metadata.userinfo_endpoint, {"Authorization": f"Bearer {access_token}"})

    async def _get(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        try:
            status, answer = await self._caller.get(url, headers={"Accept": "application/json", **(headers or {})})
        except CallFailed as error:
            raise ProviderFailed(f"{url}: {error}") from error
        if status != 200:
            raise ProviderFailed(f"{url}: status {status}")
        return answer

    def _uses_pkce(self, metadata: Metadata) -> bool:
        method = self.provider.pkce_method
        return method == "always" or (method == "auto" and metadata.knows_pkce)


def code_challenge(code_verifier: str) -> str:
    """The S256 challenge of a verifier."""
    return base64.urlsafe_b64encode(sha256(code_verifier.encode()).digest()).rstrip(b"=").decode()


def read_metadata(provider: OidcProvider, found: Mapping[str, Any]) -> Metadata:
    """The metadata of a discovery document, the operator's own endpoints first; an empty one where there is none.

    Raises:
        ProviderFailed: it is another issuer's, or lacks what is needed.
    """
    issuer = found.get("issuer", provider.issuer)
    if not isinstance(issuer, str) or (issuer != provider.issuer and not provider.skip_verification):
        raise ProviderFailed("the discovery document is another issuer's")
    is_fit = _url_check(provider)

    def endpoint(name: str) -> str | None:
        url = getattr(provider, name) or found.get(name)
        if url is not None and not is_fit(url):
            raise ProviderFailed(f"{name} is no https: URL")
        return url if isinstance(url, str) else None

    authorization, token = endpoint("authorization_endpoint"), endpoint("token_endpoint")
    if authorization is None or token is None:
        raise ProviderFailed("the discovery document lacks an endpoint")
    offered = found.get("id_token_signing_alg_values_supported")
    algorithms: tuple[str, ...] = provider.id_token_signing_alg_values_supported
    if not algorithms and isinstance(offered, list):
        algorithms = tuple(one for one in offered if isinstance(one, str))
    methods = found.get("code_challenge_methods_supported")
    return Metadata(
        issuer,
        authorization,
        token,
        endpoint("userinfo_endpoint"),
        endpoint("jwks_uri"),
        algorithms or DEFAULT_ALGORITHMS,
        isinstance(methods, list) and "S256" in methods,
        found.get("authorization_response_iss_parameter_supported") is True,
    )


def _url_check(provider: OidcProvider) -> Callable[[object], bool]:
    schemes = ("https://", "http://") if provider.skip_verification else ("https://",)
    return lambda url: isinstance(url, str) and url.startswith(schemes) and url.isprintable()


@dataclass(frozen=True, slots=True)
class SingleSignOn:
    """The providers, by their IDs for clients, in the operator's order.

    Attributes:
        callback_url: where they send browsers back to; registered with each.
    """

    providers: Mapping[str, ProviderClient]
    callback_url: str

    @classmethod
    def of(cls, settings: Settings, caller: JsonCaller, clock: Clock) -> "SingleSignOn | None":
        """None where no provider is configured."""
        if not settings.oidc_providers:
            return None
        clients = {one.auth_provider: ProviderClient(one, caller, clock) for one in settings.oidc_providers}
        return cls(clients, f"{settings.client_baseurl}{CALLBACK_PATH.removeprefix('/')}")

    def login_flow(self) -> dict[str, Any]:
        """The flow of GET /login."""
        return {"type": SSO, "identity_providers": [_shown(one.provider) for one in self.providers.values()]}


def _shown(provider: OidcProvider) -> dict[str, str]:
    shown = {"id": provider.auth_provider, "name": provider.idp_name}
    if provider.idp_icon is not None:
        shown["icon"] = provider.idp_icon
    if provider.idp_brand is not None:
        shown["brand"] = provider.idp_brand
    return shown
