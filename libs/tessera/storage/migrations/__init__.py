"""Schema changes: two trees of numbered plain-SQL revisions, forward only, run beside the previous release.

The trees are Alembic's (`op.execute` in rooms/versions and accounts/versions); each keeps its
version in a table of its own schema, so that both fit into one database or into two.
"""

from tessera.storage.migrations.runner import (
    MigrationError,
    NewerSchema,
    Tree,
    migrate,
    pending_revisions,
    require_current,
)

__all__ = ["MigrationError", "NewerSchema", "Tree", "migrate", "pending_revisions", "require_current"]
