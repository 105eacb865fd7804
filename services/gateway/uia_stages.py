"""The stages of the interactive authentication that stand between strangers and accounts.

Spec: C-S API §Google ReCaptcha, §Token-authenticated registration, §Terms of service at registration.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from services.gateway.address_validation import PASSWORD_RESET, REGISTER, AddressValidation, Proven
from services.gateway.outgoing_calls import OutgoingCalls
from services.gateway.policies import Policies
from services.gateway.telephone_delegate import TelephoneDelegate
from services.gateway.uia import Stage, StageFailed, Trial
from tessera.clock import Clock
from tessera.config import Settings
from tessera.http.errors import Unavailable
from tessera.http.json_calls import CallFailed, JsonCaller
from tessera.storage import registration_tokens
from tessera.storage.database import Database

RECAPTCHA = "m.login.recaptcha"
REGISTRATION_TOKEN = "m.login.registration_token"  # noqa: S105  the name of a stage
TERMS = "m.login.terms"
EMAIL = "m.login.email.identity"
MSISDN = "m.login.msisdn"

MAX_RESPONSE_LENGTH = 16_384

# What an address is proven for, by the operation that asks for it.
_PURPOSES = {"register": REGISTER, "changePassword": PASSWORD_RESET}


@dataclass(frozen=True)
class RecaptchaStage(Stage):
    """A puzzle that robots are said not to solve.

    Attributes:
        verify_url: where the client's answer is checked.
    """

    needs_session: ClassVar[bool] = False

    caller: JsonCaller
    verify_url: str
    public_key: str
    private_key: str

    async def check(self, trial: Trial) -> None:
        response = trial.auth.get("response")
        if not isinstance(response, str) or not response or len(response) > MAX_RESPONSE_LENGTH:
            raise StageFailed("M_CAPTCHA_NEEDED", "The captcha's response is missing")
        try:
            status, answer = await self.caller.post_form(
                self.verify_url, {"secret": self.private_key, "response": response}
            )
        except CallFailed as error:
            raise Unavailable("The captcha cannot be checked now") from error
        if status != 200 or answer.get("success") is not True:
            raise StageFailed("M_CAPTCHA_INVALID", "The captcha was not solved")

    def params(self, session_id: str) -> Mapping[str, object]:
        return {"public_key": self.public_key}


@dataclass(frozen=True)
class RegistrationTokenStage(Stage):
    """A token that the operator gave away; the session takes one use of it."""

    needs_session: ClassVar[bool] = True

    accounts: Database
    clock: Clock

    async def check(self, trial: Trial) -> None:
        token = trial.auth.get("token")
        if not isinstance(token, str):
            raise StageFailed("M_MISSING_PARAM", "The registration token is missing")
        assert trial.session_id is not None
        async with self.accounts.transaction() as tx:
            claimed = await registration_tokens.claim_token(tx, trial.session_id, token, now_ms=self.clock.now_ms())
        if not claimed:
            raise StageFailed("M_UNAUTHORIZED", "The registration token is not valid")

    def params(self, session_id: str) -> None:
        return None


@dataclass(frozen=True)
class TermsStage(Stage):
    """Documents to accept; what is found out is the version of each that was shown."""

    needs_session: ClassVar[bool] = True

    policies: Policies

    async def check(self, trial: Trial) -> dict[str, str]:
        return {name: policy.version for name, policy in self.policies.required.items()}

    def params(self, session_id: str) -> Mapping[str, Any]:
        return {"policies": self.policies.params()}


@dataclass(frozen=True)
class AddressStage(Stage):
    """A proven address; what is found out is the address.

    Attributes:
        find_proof: takes purpose, sid and client_secret.
    """

    needs_session: ClassVar[bool] = True

    find_proof: Callable[[str, str, str], Awaitable[Proven | None]]

    async def check(self, trial: Trial) -> dict[str, Any]:
        # Some clients still write it as it was before r0.5.
        given = trial.auth.get("threepid_creds", trial.auth.get("threepidCreds"))
        if not isinstance(given, Mapping):
            raise StageFailed("M_MISSING_PARAM", "threepid_creds is missing")
        session_id, secret = given.get("sid"), given.get("client_secret")
        if not isinstance(session_id, str) or not isinstance(secret, str):
            raise StageFailed("M_MISSING_PARAM", "threepid_creds lacks sid or client_secret")
        proof = await self.find_proof(_PURPOSES[trial.operation], session_id, secret)
        if proof is None:
            raise StageFailed("M_THREEPID_AUTH_FAILED", "The address is not proven yet")
        return asdict(proof)

    def params(self, session_id: str) -> None:
        return None


def build_stages(
    settings: Settings,
    accounts: Database,
    clock: Clock,
    calls: OutgoingCalls,
    policies: Policies,
    addresses: AddressValidation,
    telephones: TelephoneDelegate,
) -> dict[str, Stage]:
    """The stages that the settings make possible, by name."""
    stages: dict[str, Stage] = {REGISTRATION_TOKEN: RegistrationTokenStage(accounts, clock)}
    if addresses.mailer is not None:
        stages[EMAIL] = AddressStage(addresses.find_proof)
    if telephones.url is not None:

        async def find_number(_purpose: str, session_id: str, client_secret: str) -> Proven | None:
            return await telephones.find_proof(session_id, client_secret)

        stages[MSISDN] = AddressStage(find_number)
    if policies.required:
        stages[TERMS] = TermsStage(policies)
    public_key, private_key = settings.recaptcha_public_key, settings.recaptcha_private_key
    if settings.enable_registration_captcha and public_key is not None and private_key is not None:
        stages[RECAPTCHA] = RecaptchaStage(
            calls.trusted,
            settings.recaptcha_siteverify_api,
            public_key.get_secret_value(),
            private_key.get_secret_value(),
        )
    return stages
