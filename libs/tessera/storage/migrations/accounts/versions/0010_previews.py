"""Previews of links, kept for a while, and the way from a stored object to the row that names it."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# body: the answer as JSON; NULL where the page could not be had, so that nobody asks for it all the time.
# preview_images: media that were stored for previews, and go when nobody can have use for them any longer.
STATEMENTS = (
    """
    CREATE TABLE accounts.url_previews (
        url_hash bytea PRIMARY KEY,
        fetched_ts bigint NOT NULL,
        expires_ts bigint NOT NULL,
        body bytea
    )
    """,
    "CREATE INDEX url_previews_by_expiry ON accounts.url_previews (expires_ts)",
    """
    CREATE TABLE accounts.preview_images (
        origin text NOT NULL,
        media_id text NOT NULL,
        created_ts bigint NOT NULL,
        PRIMARY KEY (origin, media_id)
    )
    """,
    "CREATE INDEX preview_images_by_age ON accounts.preview_images (created_ts)",
    "CREATE INDEX media_by_object ON accounts.media (object_key) WHERE object_key IS NOT NULL",
    "CREATE INDEX media_expired ON accounts.media (expires_ts) WHERE uploaded_ts IS NULL",
)


def upgrade() -> None:
    """Create the tables; forward only."""
    for statement in STATEMENTS:
        op.execute(statement)
