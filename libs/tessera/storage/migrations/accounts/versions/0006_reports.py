"""Reports of content, rooms and users, for the people who run the server."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE accounts.reports (
        report_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        reporter text NOT NULL,
        room_id text,
        event_id text,
        reported_user text,
        reason text,
        received_ts bigint NOT NULL
    )
    """,
    "CREATE INDEX reports_by_time ON accounts.reports (received_ts)",
)


def upgrade() -> None:
    """Create the table; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)
