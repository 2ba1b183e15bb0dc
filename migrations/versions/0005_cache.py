"""The secret that signs what a cache holds, and which cells of a segment have rows.

Revision: 0005
After: 0004
"""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # SQLite copies the tables, so that their definitions read as the models'.
    copied = "always" if op.get_context().dialect.name == "sqlite" else "auto"
    with op.batch_alter_table("installation", recreate=copied) as batch:
        batch.add_column(sa.Column("secret", sa.String(length=64), nullable=True))
    installation = sa.table("installation", sa.column("secret", sa.String))
    op.execute(installation.update().values(secret=secrets.token_hex(32)))
    options = {"sqlite_autoincrement": True}
    with op.batch_alter_table("segments", recreate=copied, table_kwargs=options) as batch:
        # NULL for segments of before: nothing is known of their cells.
        batch.add_column(sa.Column("filled_cells", sa.Text(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("there is no way down from 0005; restore the backup")
