"""Locations: time of status change and inode of the file; since when it is gone.

Revision: 0003
After: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    copied = "always" if op.get_context().dialect.name == "sqlite" else "auto"
    options = {"sqlite_autoincrement": True}
    with op.batch_alter_table("locations", recreate=copied, table_kwargs=options) as batch:
        # NULL for what is known: such files are read once more.
        batch.add_column(sa.Column("ctime_ns", sa.BigInteger(), nullable=True))
        batch.add_column(sa.Column("inode", sa.BigInteger(), nullable=True))
        batch.add_column(sa.Column("gone_at", sa.Float(precision=53), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("there is no way down from 0003; restore the backup")
