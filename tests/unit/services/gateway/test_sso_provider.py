"""What is believed of a provider's metadata, and how often it is asked."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from services.gateway.sso_provider import ProviderClient, ProviderFailed, SingleSignOn, code_challenge, read_metadata
from tessera.clock import FakeClock
from tessera.config import Settings
from tessera.config.single_sign_on import OidcProvider
from tessera.http.json_calls import CallFailed, JsonCaller

ISSUER = "https://id.example.org/realms/staff"
DOCUMENT: dict[str, Any] = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/auth?kind=1",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": f"{ISSUER}/keys",
}


class Caller(JsonCaller):
    """Answers with a document, or not at all."""

    def __init__(self, document: dict[str, Any] | None) -> None:
        super().__init__(None)
        self.document = document
        self.urls: list[str] = []

    async def get(
        self, url: str, *, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        self.urls.append(url)
        if self.document is None:
            raise CallFailed("away")
        return 200, self.document


def provider(**changes: Any) -> OidcProvider:
    mapping = {"config": {"localpart_template": "{{ user.name }}"}}
    defaults = {"issuer": ISSUER, "client_id": "matrix", "client_secret": "x", "user_mapping_provider": mapping}
    return OidcProvider.model_validate(defaults | changes)


async def authorization(client: ProviderClient, *, is_fresh: bool = False) -> dict[str, list[str]]:
    url = await client.authorization_url(
        redirect_uri="https://m.org/cb", state="s", nonce="n", code_verifier="v", is_fresh=is_fresh
    )
    assert url.startswith(f"{ISSUER}/auth?kind=1&")
    return parse_qs(urlsplit(url).query)


def test_a_document() -> None:
    found = read_metadata(provider(), DOCUMENT)
    assert (found.token_endpoint, found.userinfo_endpoint, found.algorithms) == (f"{ISSUER}/token", None, ("RS256",))
    assert not found.knows_pkce
    own = provider(token_endpoint="https://other.example.org/token", id_token_signing_alg_values_supported=["ES256"])
    found = read_metadata(own, {**DOCUMENT, "id_token_signing_alg_values_supported": ["RS512"]})
    assert (found.token_endpoint, found.algorithms) == ("https://other.example.org/token", ("ES256",))


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://evil.example"},
        {"issuer": f"{ISSUER}/"},
        {"issuer": 5},
        {"token_endpoint": "http://id.example.org/token"},
        {"token_endpoint": None},
        {"jwks_uri": 5},
        {"authorization_endpoint": "javascript:alert(1)"},
    ],
)
def test_documents_that_are_not_believed(change: dict[str, Any]) -> None:
    with pytest.raises(ProviderFailed):
        read_metadata(provider(), {**DOCUMENT, **change})


def test_another_issuer_where_the_operator_says_so() -> None:
    found = read_metadata(
        provider(skip_verification=True), {**DOCUMENT, "issuer": "https://login.example.org/{tenant}"}
    )
    assert found.issuer == "https://login.example.org/{tenant}"


async def test_the_document_is_kept_for_an_hour_and_longer_if_need_be() -> None:
    clock, caller = FakeClock(), Caller(DOCUMENT)
    client = ProviderClient(provider(), caller, clock)
    for _ in range(3):
        await client.metadata()
    assert caller.urls == [f"{ISSUER}/.well-known/openid-configuration"]
    caller.document = None
    clock.shift(3_601)
    assert (await client.metadata()).issuer == ISSUER
    assert (await client.metadata()).issuer == ISSUER
    assert len(caller.urls) == 2


async def test_nobody_waits_anew_for_a_provider_that_has_just_failed() -> None:
    clock, caller = FakeClock(), Caller(None)
    client = ProviderClient(provider(), caller, clock)
    for _ in range(3):
        with pytest.raises(ProviderFailed):
            await client.metadata()
    assert len(caller.urls) == 1
    caller.document = DOCUMENT
    clock.shift(6)
    assert (await client.metadata()).issuer == ISSUER


@pytest.mark.parametrize(
    ("method", "document", "used"),
    [
        ("auto", DOCUMENT, False),
        ("auto", {**DOCUMENT, "code_challenge_methods_supported": ["plain", "S256"]}, True),
        ("always", DOCUMENT, True),
        ("never", {**DOCUMENT, "code_challenge_methods_supported": ["S256"]}, False),
    ],
)
async def test_pkce(method: str, document: dict[str, Any], used: bool) -> None:
    asked = await authorization(ProviderClient(provider(pkce_method=method), Caller(document), FakeClock()))
    assert ("code_challenge" in asked) is used
    if used:
        assert asked["code_challenge"] == [code_challenge("v")]


async def test_what_the_operator_adds_does_not_replace_what_protects() -> None:
    added = provider(additional_authorization_parameters={"acr_values": "2fa", "state": "x", "client_id": "x"})
    asked = await authorization(ProviderClient(added, Caller(DOCUMENT), FakeClock()), is_fresh=True)
    assert (asked["acr_values"], asked["state"], asked["client_id"]) == (["2fa"], ["s"], ["matrix"])
    assert asked["prompt"] == ["login"]


def test_rfc_7636_challenge() -> None:
    """Appendix B of RFC 7636."""
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert code_challenge(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_clients_are_told_of_providers_in_order() -> None:
    mapping = {"config": {"localpart_template": "{{ user.name }}"}}
    given = [
        {"idp_id": name, "idp_name": name, "issuer": ISSUER, "client_id": "m", "client_secret": "x"}
        | {"user_mapping_provider": mapping}
        for name in ("b", "a")
    ]
    settings = Settings.for_tests(oidc_providers=given, public_baseurl="https://matrix.example.org")
    sso = SingleSignOn.of(settings, Caller(DOCUMENT), FakeClock())
    assert sso is not None
    assert [one["id"] for one in sso.login_flow()["identity_providers"]] == ["oidc-b", "oidc-a"]
    assert sso.callback_url == "https://matrix.example.org/_synapse/client/oidc/callback"
    assert SingleSignOn.of(Settings.for_tests(), Caller(DOCUMENT), FakeClock()) is None
