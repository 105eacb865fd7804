"""The settings of accounts: who may register and how, e-mail, identity servers; Synapse's names where it has them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator

from tessera.config.values import Duration, FilePath, Section

HOUR_MS = 3_600_000
MINUTE_MS = 60_000

Medium = Literal["email", "msisdn"]


def check_url(url: str) -> str:
    """Raises ValueError unless it begins as a URL of the web does."""
    if not url.startswith(("https://", "http://")) or len(url) <= len("https://"):
        raise ValueError("must be a URL such as https://id.example.org")
    return url.rstrip("/")


WebUrl = Annotated[str, AfterValidator(check_url)]


def _join_medium(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Email(Section):
    """How mail is sent. Spec: none; Synapse's `email`.

    Attributes:
        notif_from: the sender's address; `%(app)s` stands for app_name.
        client_base_url: the web client that mails lead to.
        validation_token_lifetime: of the links that prove an address.
    """

    smtp_host: str = "localhost"
    smtp_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    smtp_user: str | None = None
    smtp_pass: SecretStr | None = None
    force_tls: bool = False
    require_transport_security: bool = False
    enable_tls: bool = True
    tlsname: str | None = None
    notif_from: str = ""
    app_name: str = "Matrix"
    enable_notifs: bool = False
    notif_for_new_users: bool = True
    notif_delay_before_mail: Duration = 10 * MINUTE_MS
    client_base_url: WebUrl | None = None
    invite_client_location: WebUrl | None = None
    validation_token_lifetime: Duration = HOUR_MS
    subjects: Mapping[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_sender(self) -> "Email":
        if not self.notif_from:
            raise ValueError("notif_from is required: the address that mails come from")
        if self.force_tls and not self.enable_tls:
            raise ValueError("force_tls and enable_tls: false contradict each other")
        if (self.smtp_user is None) != (self.smtp_pass is None):
            raise ValueError("smtp_user and smtp_pass go together")
        return self

    @property
    def port(self) -> int:
        """The port of the mail server: 465 where TLS comes first, else 25."""
        return self.smtp_port or (465 if self.force_tls else 25)

    @property
    def sender(self) -> str:
        """The From of mails."""
        return self.notif_from.replace("%(app)s", self.app_name)


class PolicyText(Section):
    """A document in one language."""

    name: str
    url: WebUrl


class Policy(Section):
    """A document that users accept: its version, and for each language its name and where it is."""

    version: str
    languages: Mapping[str, PolicyText]

    @field_validator("languages")
    @classmethod
    def _check_english(cls, languages: Mapping[str, PolicyText]) -> Mapping[str, PolicyText]:
        if not languages:
            raise ValueError("must name the document in one language at least")
        return languages


class UserConsent(Section):
    """A document of this server's own, as Synapse's `user_consent` has it.

    Attributes:
        template_dir: has `<language>/<version>.html`, Jinja2 templates.
        version: the current one.
        require_at_registration: ask for it with the stage m.login.terms.
    """

    template_dir: FilePath
    version: str
    require_at_registration: bool = False
    policy_name: str = "Privacy Policy"

    @field_validator("version")
    @classmethod
    def _check_version(cls, version: str) -> str:
        if not version or not all(letter.isalnum() or letter in "-_." for letter in version) or ".." in version:
            raise ValueError("must be a name of letters, digits and -_.")
        return version


class ThreepidDelegates(Section):
    """Identity servers that prove addresses in this server's place."""

    msisdn: WebUrl | None = None


class LocalThreepids(Section):
    """Addresses that may be registered: a medium and a regular expression."""

    medium: Medium
    pattern: str


class ExistingSession(Section):
    """Login with the help of a session that is there already. Spec: C-S API POST /login/get_token."""

    enabled: bool = False
    require_ui_auth: Literal[True] = True
    token_timeout: Duration = 2 * MINUTE_MS


Media = Annotated[tuple[Medium, ...], BeforeValidator(_join_medium)]


class AccountKeys(Section):
    """Keys of the file that are about accounts; `Settings` inherits them."""

    enable_registration: bool = False
    enable_registration_without_verification: bool = False
    registration_requires_token: bool = False
    registrations_require_3pid: Media = ()
    enable_registration_token_3pid_bypass: bool = False
    allowed_local_3pids: tuple[LocalThreepids, ...] = ()
    inhibit_user_in_use_error: bool = False
    enable_registration_captcha: bool = False
    recaptcha_public_key: SecretStr | None = None
    recaptcha_private_key: SecretStr | None = None
    recaptcha_siteverify_api: WebUrl = "https://www.recaptcha.net/recaptcha/api/siteverify"
    user_consent: UserConsent | None = None

    email: Email | None = None
    enable_3pid_changes: bool = True
    request_token_inhibit_3pid_errors: bool = False
    next_link_domain_whitelist: frozenset[str] | None = None
    account_threepid_delegates: ThreepidDelegates = ThreepidDelegates()
    default_identity_server: WebUrl | None = None
    login_via_existing_session: ExistingSession = ExistingSession()

    @field_validator("email", "user_consent", mode="before")
    @classmethod
    def _take_empty_for_none(cls, value: Any) -> Any:
        return value or None

    @field_validator("account_threepid_delegates", "login_via_existing_session", mode="before")
    @classmethod
    def _take_nothing_for_defaults(cls, value: Any) -> Any:
        return {} if value is None else value

    @property
    def registration_is_verified(self) -> bool:
        """Whether something stands between robots and accounts."""
        return bool(
            self.enable_registration_captcha or self.registration_requires_token or self.registrations_require_3pid
        )
