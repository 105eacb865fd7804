"""Words by which people are found, of this server and of others."""

from alembic import op

revision = "0023"
down_revision = "0022"

_WORDS = "tsvector GENERATED ALWAYS AS (to_tsvector('simple', translate(search_text, '@:._/=+-', '        '))) STORED"

STATEMENTS = (
    f"ALTER TABLE accounts.profiles ADD COLUMN words {_WORDS}",
    "CREATE INDEX profiles_words ON accounts.profiles USING gin (words)",
    # A projection of the rooms: how users of other servers were called when they were last seen.
    f"""
    CREATE TABLE accounts.remote_users (
        user_id text PRIMARY KEY,
        displayname text,
        avatar_url text,
        search_text text NOT NULL,
        words {_WORDS}
    )
    """,
    "CREATE INDEX remote_users_words ON accounts.remote_users USING gin (words)",
)


def upgrade() -> None:
    """The profiles are written anew once; `tessera rebuild people` finds the others."""
    for statement in STATEMENTS:
        op.execute(statement)
