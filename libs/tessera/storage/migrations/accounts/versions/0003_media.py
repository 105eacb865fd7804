"""Media: what was uploaded, by whom, and what is known about the stored bytes."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MEDIA = """
CREATE TABLE accounts.media (
    origin text NOT NULL,            -- server name of the mxc:// URI
    media_id text NOT NULL,
    user_id text NOT NULL,           -- who uploaded or reserved it
    created_ts bigint NOT NULL,
    expires_ts bigint,               -- a reserved ID without content is void from here on; NULL once uploaded
    uploaded_ts bigint,              -- NULL until the content is there
    content_type text,
    filename text,
    size_bytes bigint,
    object_key text,                 -- names the bytes in the object store; random, so uploads never meet
    authenticated boolean NOT NULL,  -- served on the authenticated paths only
    PRIMARY KEY (origin, media_id)
);
CREATE INDEX media_pending ON accounts.media (user_id, expires_ts) WHERE uploaded_ts IS NULL;
CREATE INDEX media_by_user ON accounts.media (user_id, created_ts);
"""


def upgrade() -> None:
    """Create the table; forward only."""
    for statement in MEDIA.split(";\n"):  # one at a time: a prepared statement holds one command
        if statement.strip():
            op.execute(statement)
