"""Why the embedded PostgreSQL cannot serve."""


class EmbeddedPostgresError(Exception):
    """PostgreSQL cannot be set up or started; the message is one line for the operator."""
