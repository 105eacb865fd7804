"""With whom this server federates at all."""

from collections.abc import Callable, Collection, Sequence

from matrixcore.globs import whole_value_matcher
from matrixcore.identifiers import ServerName
from tessera.config import Settings


class FederationPolicy:
    """The operator's word on peers.

    Args:
        server_name: our own, which is no peer.
        enabled: whether there are peers.
        only: the only peers there are; None for all.
        denied: globs of peers that there are not, whatever `only` says.
    """

    def __init__(
        self,
        server_name: ServerName,
        *,
        enabled: bool = True,
        only: Collection[ServerName] | None = None,
        denied: Sequence[str] = (),
    ) -> None:
        self._own = server_name
        self._enabled = enabled
        self._only = None if only is None else frozenset(name.lower() for name in only)
        self._denied: tuple[Callable[[str], bool], ...] = tuple(whole_value_matcher(glob) for glob in denied)

    @classmethod
    def of(cls, settings: Settings) -> "FederationPolicy":
        """What the configuration says."""
        federation = settings.tessera.federation
        return cls(
            ServerName(settings.server_name),
            enabled=federation.enabled,
            only=settings.federation_domain_whitelist,
            denied=federation.denied_servers,
        )

    @property
    def enabled(self) -> bool:
        """Whether this server federates with anybody."""
        return self._enabled

    def allows(self, server: ServerName) -> bool:
        """Whether this peer may ask and be asked; our own name never is one."""
        if not self._enabled or server == self._own:
            return False
        if self._only is not None and server.lower() not in self._only:
            return False
        return not any(matches(server) for matches in self._denied)
