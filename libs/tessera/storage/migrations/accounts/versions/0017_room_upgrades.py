"""Upgrades of rooms that are under way, so that a killed gateway's are finished by another."""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

STATEMENTS = (
    # seed: what the ids of the commands are made of. A finished row stays for a while, to answer a repeated request.
    """
    CREATE TABLE accounts.room_upgrades (
        old_room_id text PRIMARY KEY,
        sender text NOT NULL,
        new_version text NOT NULL,
        additional_creators text[] NOT NULL,
        new_room_id text NOT NULL,
        seed bytea NOT NULL,
        create_pdu bytea NOT NULL,
        phase text NOT NULL
            CHECK (phase IN ('create', 'copy', 'tombstone', 'aliases', 'restrict', 'settings', 'done')),
        phase_at timestamptz NOT NULL DEFAULT now()
    )
    """,
)


def upgrade() -> None:
    """Create the table; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)
