"""The documents that whoever registers accepts: the server's own page and those that lie elsewhere.

Spec: C-S API §Terms of service at registration.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tessera.config import Settings
from tessera.config.accounts import Policy, PolicyText

CONSENT_PATH = "_matrix/consent"
OWN_POLICY = "privacy_policy"


@dataclass(frozen=True, slots=True)
class Policies:
    """What is asked for at registration, by a name for programs."""

    required: Mapping[str, Policy]

    @classmethod
    def of(cls, settings: Settings) -> "Policies":
        """As the operator set them: `tessera.terms`, and `user_consent` where it is required at registration."""
        required = dict(settings.tessera.terms)
        consent = settings.user_consent
        if consent is not None and consent.require_at_registration:
            url = f"{settings.client_baseurl}{CONSENT_PATH}?v={consent.version}"
            text = PolicyText(name=consent.policy_name, url=url)
            required[OWN_POLICY] = Policy(version=consent.version, languages={"en": text})
        return cls(required)

    def params(self) -> dict[str, dict[str, object]]:
        """The `policies` of the stage's params."""
        return {
            name: {
                "version": policy.version,
                **{language: {"name": text.name, "url": text.url} for language, text in policy.languages.items()},
            }
            for name, policy in self.required.items()
        }
