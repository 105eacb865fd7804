"""What two devices leave for each other while one logs the other in."""

from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; forward only."""
    op.execute(
        """
        CREATE TABLE accounts.rendezvous (
            rendezvous_id text PRIMARY KEY,
            content bytea NOT NULL,
            version bigint NOT NULL DEFAULT 1,
            changed_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX ON accounts.rendezvous (expires_at)")
