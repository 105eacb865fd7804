"""Names that application services claim for themselves. Spec: AS API §Registration, exclusive namespaces."""

from typing import Protocol

from matrixcore.identifiers import UserId


class ClaimedNames(Protocol):
    """Says whose a name is; asked before every registration by somebody else."""

    def is_user_claimed(self, user_id: UserId) -> bool:
        """Whether an application service has this user ID in an exclusive namespace."""
        ...
