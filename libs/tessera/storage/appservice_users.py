"""Accounts that application services made. Spec: Application Service API §Server admin style permissions."""

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction

_SET = "UPDATE accounts.users SET appservice_id = $2 WHERE user_id = $1"


async def set_appservice(tx: Transaction, user_id: UserId, service_id: str) -> None:
    """The account is this service's."""
    await tx.execute(_SET, user_id, service_id)
