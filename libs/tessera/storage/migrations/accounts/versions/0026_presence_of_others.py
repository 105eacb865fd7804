"""When other servers last told of their users' presence."""

from alembic import op

revision = "0026"
down_revision = "0025"

STATEMENTS = (
    # NULL: of a user of this server. What was told before this column came is told again, or out of date.
    "ALTER TABLE accounts.presence ADD COLUMN told_at timestamptz",
    # Those who may be about now; the others an initial sync does not look at.
    """
    CREATE INDEX presence_told ON accounts.presence (told_at) WHERE told_at IS NOT NULL AND presence <> 'offline'
    """,
)


def upgrade() -> None:
    """Expand the schema; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)
