"""The stages of the interactive authentication that stand between strangers and accounts.

Spec: C-S API §Google ReCaptcha, §Token-authenticated registration, §Terms of service at registration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from services.gateway.outgoing_calls import OutgoingCalls
from services.gateway.policies import Policies
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

    def params(self) -> Mapping[str, object]:
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

    def params(self) -> None:
        return None


@dataclass(frozen=True)
class TermsStage(Stage):
    """Documents to accept; what is found out is the version of each that was shown."""

    needs_session: ClassVar[bool] = True

    policies: Policies

    async def check(self, trial: Trial) -> dict[str, str]:
        return {name: policy.version for name, policy in self.policies.required.items()}

    def params(self) -> Mapping[str, Any]:
        return {"policies": self.policies.params()}


def build_stages(
    settings: Settings, accounts: Database, clock: Clock, calls: OutgoingCalls, policies: Policies
) -> dict[str, Stage]:
    """The stages that the settings make possible, by name."""
    stages: dict[str, Stage] = {REGISTRATION_TOKEN: RegistrationTokenStage(accounts, clock)}
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
