"""Which stages a registration takes. Spec: C-S API POST /register; Synapse's settings of registration."""

from services.gateway.uia import DUMMY, Flows
from services.gateway.uia_stages import EMAIL, MSISDN, RECAPTCHA, REGISTRATION_TOKEN, TERMS
from tessera.config import Settings


def registration_flows(settings: Settings, *, has_terms: bool) -> Flows:
    """The flows under the settings: any of them is enough.

    Addresses that are not required may be given nonetheless where they can be proven. A dummy stage tells such a flow
    from the ones that go on.
    """
    first = [RECAPTCHA] if settings.enable_registration_captcha else []
    first += [TERMS] if has_terms else []
    token = [REGISTRATION_TOKEN] if settings.registration_requires_token else []
    can_mail = settings.email is not None
    can_text = settings.account_threepid_delegates.msisdn is not None
    required = [
        stage
        for medium, stage in (("email", EMAIL), ("msisdn", MSISDN))
        if medium in settings.registrations_require_3pid
    ]
    flows: list[tuple[str, ...]] = []
    if required:
        flows.append((*first, *token, *required))
        if settings.enable_registration_token_3pid_bypass:
            flows.append((*first, REGISTRATION_TOKEN))
        return tuple(flows)
    flows.append((*first, *token, DUMMY) if can_mail or can_text or not (first or token) else (*first, *token))
    if can_mail:
        flows.append((*first, *token, EMAIL))
    if can_text:
        flows.append((*first, *token, MSISDN))
    return tuple(flows)
