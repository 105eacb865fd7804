"""Federation, as far as Synapse has no keys for it."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from tessera.config.rate_limits import RateLimit
from tessera.config.values import Section


def _at_least_secure(value: object) -> object:
    """Versions below 1.2, which Synapse still knows, are raised to it."""
    text = str(value)
    return "1.2" if text in ("1", "1.0", "1.1") else text


MinimumTls = Annotated[Literal["1.2", "1.3"], BeforeValidator(_at_least_secure)]


class FederationSettings(Section):
    """Under `tessera.federation`.

    Attributes:
        enabled: False makes a server without peers: it asks nobody and answers nobody.
        denied_servers: globs of servers that are no peers, such as "*.example.com".
        rc_notary: servers whose keys are fetched because others ask us for them.
    """

    enabled: bool = True
    denied_servers: tuple[str, ...] = ()
    rc_notary: RateLimit = RateLimit(per_second=5, burst_count=100)
