"""What connections of sliding sync were told, so that any process answers any client. Spec: MSC4186 §Connections."""

from typing import NamedTuple

from matrixcore.identifiers import UserId
from tessera.storage.database import Transaction

MAX_PER_DEVICE = 8
MAX_ANSWERS = 4  # to one `pos`: whoever repeats a request more often has to go on from one of the newest


class ConnectionKey(NamedTuple):
    """Whose connection, and which."""

    user_id: UserId
    device_id: str
    conn_id: str


class StoredGeneration(NamedTuple):
    """What a connection was told at some time."""

    generation: str
    told: bytes


# What lies before the generation that the client went on from is of no use any longer, nor is what another connection
# of the same name was told; a device has so many connections and no more, the newest.
_ADD = """
WITH mine AS (
    SELECT conn_id, name, generation, number FROM accounts.sliding_connections WHERE user_id = $1 AND device_id = $2
), gone AS (
    DELETE FROM accounts.sliding_connections c
    WHERE c.user_id = $1 AND c.device_id = $2 AND (
        c.conn_id = $3 AND (
            c.name <> $4
            OR c.number < (SELECT number FROM mine WHERE conn_id = $3 AND generation = $6)
            OR c.number IN (
                SELECT number FROM mine WHERE conn_id = $3 AND generation <> $6 ORDER BY number DESC OFFSET $8
            )
        )
        OR c.conn_id IN (
            SELECT conn_id FROM mine WHERE conn_id <> $3 GROUP BY conn_id ORDER BY max(number) DESC OFFSET $9
        )
    )
)
INSERT INTO accounts.sliding_connections (user_id, device_id, conn_id, name, generation, told)
VALUES ($1, $2, $3, $4, $5, $7)
"""

_LIST = """
SELECT generation, told FROM accounts.sliding_connections
WHERE user_id = $1 AND device_id = $2 AND conn_id = $3 AND name = $4 ORDER BY number
"""


async def add(tx: Transaction, key: ConnectionKey, name: str, generation: str, parent: str, told: bytes) -> None:
    """Store a generation, and drop what nobody can go on from any longer; one statement.

    Args:
        name: of the connection, new for each that begins.
        parent: the generation that the client went on from; "" for none.
    """
    await tx.execute(_ADD, *key, name, generation, parent, told, MAX_ANSWERS - 1, MAX_PER_DEVICE - 1)


async def list_generations(tx: Transaction, key: ConnectionKey, name: str) -> list[StoredGeneration]:
    """What a connection of this name was told, the oldest first; nothing if it is gone."""
    return [StoredGeneration(*row) for row in await tx.fetch(_LIST, *key, name)]
