"""Being an OAuth 2.0 authorisation server. Spec: C-S API §OAuth 2.0 API."""

from tessera.config.rate_limits import RateLimit
from tessera.config.values import Section


class OAuthSettings(Section):
    """Under `tessera.oauth`: whether clients may log in by the OAuth 2.0 API, beside the legacy one.

    Attributes:
        rc_address: registrations of clients, pages begun, codes asked for or typed in, by address.
    """

    enabled: bool = False
    rc_address: RateLimit = RateLimit(per_second=0.5, burst_count=30)
