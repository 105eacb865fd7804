"""The settings of single sign-on: Synapse's `oidc_providers` and `sso`. What of them is not supported is refused."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from jinja2 import Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from tessera.config.accounts import check_url
from tessera.config.values import Section, Texts

MAX_PROVIDERS = 50
# Signatures whose key only the provider has. HS256, made with the client's secret, and none are not among them.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_MAPPER: Literal["synapse.handlers.oidc.JinjaOidcMappingProvider"] = "synapse.handlers.oidc.JinjaOidcMappingProvider"

_PROVIDER_KEYS = (
    "backchannel_logout_enabled",
    "backchannel_logout_ignore_sub",
    "backchannel_logout_is_soft",
    "client_secret_jwt_key",
    "passthrough_authorization_parameters",
    "redirect_uri",
)
_MAPPING_KEYS = ("confirm_localpart", "extra_attributes", "picture_claim", "subject_template")


def localpart_from_email(address: str) -> str:
    """What stands before the last @, as Synapse's filter of that name."""
    return str(address).rpartition("@")[0]


def _nothing_for_none(value: object) -> object:
    return "" if value is None else value


_TEMPLATES = SandboxedEnvironment(autoescape=False, finalize=_nothing_for_none)
_TEMPLATES.filters["localpart_from_email"] = localpart_from_email


def compile_template(text: str) -> Template:
    """A Jinja2 template, in a sandbox; `user` is to be the claims.

    Raises:
        ValueError: it is none.
    """
    try:
        return _TEMPLATES.from_string(text)
    except TemplateError as error:
        raise ValueError(f"is no Jinja2 template: {error}") from None


def _check_template(text: str) -> str:
    compile_template(text)
    return text


def _check_endpoint(url: str) -> str:
    check_url(url)
    if not url.isprintable() or " " in url or not urlsplit(url).hostname:
        raise ValueError("must be a URL such as https://id.example.org/token")
    return url


def without_unsupported(data: Any, keys: Sequence[str]) -> Any:
    """The section without keys of Synapse's that are switched off.

    Raises:
        ValueError: one that is not supported asks for something.
    """
    if not isinstance(data, Mapping):
        return data
    for key in keys:
        if data.get(key):
            raise ValueError(f"{key} is not supported; remove it, or switch it off")
    return {key: value for key, value in data.items() if key not in keys}


TemplateText = Annotated[str, AfterValidator(_check_template)]
Endpoint = Annotated[str, AfterValidator(_check_endpoint)]


class AttributeRequirement(Section):
    """A claim that whoever signs in must have; with `value` or `one_of`, what it must be or hold."""

    attribute: str
    value: str | None = None
    one_of: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_one(self) -> "AttributeRequirement":
        if self.value is not None and self.one_of:
            raise ValueError("takes value or one_of, not both")
        return self


class UserMapping(Section):
    """How claims become an account.

    Attributes:
        subject_claim: what identifies a person at the provider, for ever.
        localpart_template: the name of a new account; without it nobody gets one.
    """

    subject_claim: str = "sub"
    localpart_template: TemplateText | None = None
    display_name_template: TemplateText | None = None
    email_template: TemplateText | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        return without_unsupported(data, _MAPPING_KEYS)


class UserMappingProvider(Section):
    """Synapse's way to name the code that maps; there is one here."""

    module: Literal["synapse.handlers.oidc.JinjaOidcMappingProvider"] = _MAPPER
    config: UserMapping = UserMapping()


class OidcProvider(Section):
    """A provider of identities that speaks OpenID Connect, or OAuth 2.0 with a user info endpoint.

    Attributes:
        idp_id: part of the identity of everybody who signs in here, not to be changed.
        discover: the endpoints are in the issuer's discovery document; those given here come first.
        skip_verification: take http: URLs, and a discovery document that names another issuer.
        allow_existing_users: whoever signs in first as an account's name gets that account.
    """

    idp_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._~-]{1,250}$")] = "oidc"
    idp_name: Annotated[str, Field(min_length=1, max_length=255)] = "OIDC"
    idp_icon: Annotated[str, Field(pattern=r"^mxc://[^/\s]+/[^/\s]+$")] | None = None
    idp_brand: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,254}$")] | None = None
    discover: bool = True
    issuer: Endpoint
    client_id: Annotated[str, Field(min_length=1)]
    client_secret: SecretStr | None = None
    client_auth_method: Literal["client_secret_basic", "client_secret_post", "none"] = "client_secret_basic"
    id_token_signing_alg_values_supported: tuple[Algorithm, ...] = ()
    pkce_method: Literal["auto", "always", "never"] = "auto"
    scopes: Texts = ("openid",)
    authorization_endpoint: Endpoint | None = None
    token_endpoint: Endpoint | None = None
    userinfo_endpoint: Endpoint | None = None
    jwks_uri: Endpoint | None = None
    skip_verification: bool = False
    user_profile_method: Literal["auto", "userinfo_endpoint"] = "auto"
    additional_authorization_parameters: Mapping[str, str] = Field(default_factory=dict)
    allow_existing_users: bool = False
    enable_registration: bool = True
    user_mapping_provider: UserMappingProvider = UserMappingProvider()
    attribute_requirements: tuple[AttributeRequirement, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        return without_unsupported(data, _PROVIDER_KEYS)

    @model_validator(mode="after")
    def _check(self) -> "OidcProvider":
        if self.client_auth_method != "none" and self.client_secret is None:
            raise ValueError("client_secret (or client_secret_path) is required, unless client_auth_method is none")
        if not self.skip_verification:
            for name in ("issuer", "authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri"):
                url = getattr(self, name)
                if url is not None and not url.startswith("https://"):
                    raise ValueError(f"{name} must be an https: URL, unless skip_verification is true")
        if not self.discover:
            for name in ("authorization_endpoint", "token_endpoint", *self._endpoints_of_claims()):
                if getattr(self, name) is None:
                    raise ValueError(f"{name} is required, since discover is false")
        if self.enable_registration and self.mapping.localpart_template is None:
            raise ValueError(
                "user_mapping_provider.config.localpart_template is required: people cannot choose their names here; "
                "or set enable_registration to false"
            )
        if self.allow_existing_users and self.mapping.localpart_template is None:
            raise ValueError("allow_existing_users needs user_mapping_provider.config.localpart_template")
        return self

    def _endpoints_of_claims(self) -> tuple[str, ...]:
        """Those that say who somebody is."""
        checked = ("jwks_uri",) if self.uses_id_tokens else ()
        asked = ("userinfo_endpoint",) if self.asks_userinfo else ()
        return (*checked, *asked)

    @property
    def auth_provider(self) -> str:
        """The provider's ID for clients, in the table of identities and in the admin API; as Synapse makes it."""
        return self.idp_id if self.idp_id == "oidc" else f"oidc-{self.idp_id}"

    @property
    def mapping(self) -> UserMapping:
        """How claims become an account."""
        return self.user_mapping_provider.config

    @property
    def uses_id_tokens(self) -> bool:
        """Whether it speaks OpenID Connect, and not OAuth 2.0 alone."""
        return "openid" in self.scopes

    @property
    def asks_userinfo(self) -> bool:
        """Whether the claims are those of the user info endpoint."""
        return self.user_profile_method == "userinfo_endpoint" or not self.uses_id_tokens


class Sso(Section):
    """What holds for all providers.

    Attributes:
        client_whitelist: clients that nobody is asked about, by what their URLs begin with.
        update_profile_information: take the display name over at each login.
    """

    client_whitelist: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    update_profile_information: bool = False

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        return without_unsupported(data, ("template_dir",))


class SingleSignOnKeys(Section):
    """Keys of the file that are about single sign-on; `Settings` inherits them."""

    oidc_providers: Annotated[tuple[OidcProvider, ...], Field(max_length=MAX_PROVIDERS)] = ()
    sso: Sso = Sso()

    @field_validator("oidc_providers", mode="before")
    @classmethod
    def _take_none_for_no_providers(cls, value: Any) -> Any:
        return () if value is None else value

    @field_validator("sso", mode="before")
    @classmethod
    def _take_none_for_no_sso(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("oidc_providers")
    @classmethod
    def _check_ids(cls, providers: tuple[OidcProvider, ...]) -> tuple[OidcProvider, ...]:
        names = [provider.auth_provider for provider in providers]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two providers have the same idp_id: {', '.join(sorted(twice))}")
        return providers
