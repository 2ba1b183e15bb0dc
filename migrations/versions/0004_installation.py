"""Every database has an identity, by which several installations on one Redis are told apart.

Revision: 0004
After: 0003
"""

from __future__ import annotations

import secrets
import time

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    installation = op.create_table(
        "installation",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("identity", sa.String(length=32), nullable=False),
        sa.Column("former", sa.String(length=32), nullable=True),
        sa.Column("place", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("store", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    row = {"id": 1, "identity": secrets.token_hex(8), "created_at": time.time()}
    op.execute(installation.insert().values(row))


def downgrade() -> None:
    raise NotImplementedError("there is no way down from 0004; restore the backup")
