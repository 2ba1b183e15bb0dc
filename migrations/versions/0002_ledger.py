"""The ledger: hosts beside workers, where a job comes from, frames of images.

Revision: 0002
After: 0001
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _workers_and_hosts()
    _jobs()
    _images()


def downgrade() -> None:
    raise NotImplementedError("there is no way down from 0002; restore the backup")


def _altered(name: str, **options: bool) -> AbstractContextManager[BatchOperations]:
    """Change a table: SQLite copies it, so that its definition reads as the model's."""
    copied = "always" if op.get_context().dialect.name == "sqlite" else "auto"
    return op.batch_alter_table(name, recreate=copied, table_kwargs=options)


def _workers_and_hosts() -> None:
    # What the former table held were heartbeats: workers that live write theirs again.
    op.drop_table("hosts")
    op.create_table(
        "hosts",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("first_seen_at", sa.Float(precision=53), nullable=False),
        sa.Column("last_seen_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_hosts")),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("heartbeat_at", sa.Float(precision=53), nullable=False),
        sa.Column("started_at", sa.Float(precision=53), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["hosts.name"], name=op.f("fk_workers_host_hosts")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    op.create_index(op.f("ix_workers_host"), "workers", ["host"], unique=False)


def _jobs() -> None:
    with _altered("jobs") as batch:
        batch.add_column(sa.Column("process", sa.String(length=255), nullable=True))
        batch.add_column(
            sa.Column("origin", sa.String(length=16), server_default="request", nullable=False)
        )


def _images() -> None:
    with _altered("images", sqlite_autoincrement=True) as batch:
        batch.add_column(sa.Column("frame", sa.Integer(), server_default="0", nullable=False))
        batch.drop_constraint(op.f("uq_images_collection_id_sha256"), type_="unique")
        batch.create_unique_constraint(
            op.f("uq_images_collection_id_sha256_frame"), ["collection_id", "sha256", "frame"]
        )
