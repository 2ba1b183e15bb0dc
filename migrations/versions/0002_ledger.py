"""The ledger: intervals of versions; hosts beside workers; origins of jobs; frames of images.

Revision: 0002
After: 0001
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from typing import Any

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
    _versions()
    _holdings()
    if not op.get_context().as_sql:
        _write_stays(op.get_bind())
        _assign_anew(op.get_bind())
    _images()
    op.drop_table("tombstones")


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
        sa.Column("roles", sa.JSON(), nullable=False),
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
        batch.add_column(sa.Column("process", sa.String(length=512), nullable=True))
        batch.add_column(
            sa.Column("origin", sa.String(length=16), server_default="request", nullable=False)
        )
    if not op.get_context().as_sql:
        _type_parameters(op.get_bind())


def _type_parameters(connection: sa.Connection) -> None:
    """Write the parameters of all jobs as their kinds have them now."""
    jobs = sa.table(
        "jobs",
        sa.column("id", sa.String()),
        sa.column("kind", sa.String()),
        sa.column("params", sa.JSON()),
        sa.column("process", sa.String()),
        sa.column("origin", sa.String()),
    )
    for job in connection.execute(sa.select(jobs.c.id, jobs.c.kind, jobs.c.params)).all():
        values = _job_values(job.kind, job.params)
        connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(**values))


def _job_values(kind: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return what the former parameters of a job are now: its own ones, process and origin."""
    owner = params.get("local")
    told = {
        "index": {"paths": params.get("paths", [])},
        "rebuild": {},
        "compact": {"everything": bool(params.get("all")), "above": params.get("above", 0)},
    }
    return {
        "params": told[kind],
        "process": json.dumps(owner) if owner else None,
        "origin": "upkeep" if "above" in params else "request",
    }


def _images() -> None:
    with _altered("images", sqlite_autoincrement=True) as batch:
        batch.add_column(sa.Column("frame", sa.Integer(), server_default="0", nullable=False))
        batch.drop_column("in_index")
        batch.drop_column("left_out")
        batch.drop_constraint(op.f("uq_images_collection_id_sha256"), type_="unique")
        batch.create_unique_constraint(
            op.f("uq_images_collection_id_sha256_frame"), ["collection_id", "sha256", "frame"]
        )


def _versions() -> None:
    names = ("extractor", "extractor_id", "index_config")
    kinds = (sa.JSON(), sa.String(length=128), sa.JSON())
    with _altered("versions", sqlite_autoincrement=True) as batch:
        for name, kind in zip(names, kinds, strict=True):
            batch.add_column(sa.Column(name, kind, nullable=True))
    # Until now a collection had one extractor for good.
    for name in names:
        op.execute(
            f"UPDATE versions SET {name} = (SELECT {name} FROM collections "
            "WHERE collections.id = versions.collection_id)"
        )
    with _altered("versions", sqlite_autoincrement=True) as batch:
        for name, kind in zip(names, kinds, strict=True):
            batch.alter_column(name, existing_type=kind, nullable=False)


def _holdings() -> None:
    op.create_table(
        "holdings",
        sa.Column("collection_id", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("from_version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("until_version", sa.Integer(), nullable=True),
        sa.Column("rows_until", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["collection_id"],
            ["collections.id"],
            name=op.f("fk_holdings_collection_id_collections"),
        ),
        sa.ForeignKeyConstraint(
            ["image_id"], ["images.id"], name=op.f("fk_holdings_image_id_images")
        ),
        sa.PrimaryKeyConstraint("image_id", "from_version", name=op.f("pk_holdings")),
    )
    op.create_index(
        op.f("ix_holdings_collection_id_until_version"),
        "holdings",
        ["collection_id", "until_version"],
        unique=False,
    )


def _write_stays(connection: sa.Connection) -> None:
    """Say of each image which versions hold it, as far as revision 0001 tells.

    Exact for the current version, and for the images that any version hides. Of an image that was
    left out by a merge before any version hid it, the end is that of the first merge of all
    segments after its beginning.
    """
    facts = _Facts(connection)
    images = sa.text(
        "SELECT i.id, i.collection_id, i.state, i.in_index, i.left_out, c.job_id, "
        "c.state AS container_state FROM images i LEFT JOIN containers c ON c.id = i.container_id"
    )
    stays: list[dict[str, int | None]] = []
    given_up: list[int] = []
    for row in connection.execute(images).all():
        for begun, until, rows_until in facts.stays(row):
            stays.append(
                {
                    "collection_id": row.collection_id,
                    "image_id": row.id,
                    "from_version": begun,
                    "until_version": until,
                    "rows_until": rows_until,
                }
            )
        unused = row.left_out or row.container_state == "indexed"
        if row.state == "removed" and not row.in_index and unused:
            given_up.append(row.id)
    names = ("collection_id", "image_id", "from_version", "until_version", "rows_until")
    if stays:
        connection.execute(sa.table("holdings", *map(sa.column, names)).insert(), stays)
    if given_up:
        forget = "UPDATE images SET container_id = NULL, row_in_container = NULL WHERE id = :id"
        connection.execute(sa.text(forget), [{"id": image_id} for image_id in given_up])


class _Facts:
    """What revision 0001 knows of the versions that an image was in."""

    def __init__(self, connection: sa.Connection) -> None:
        published = connection.execute(
            sa.text(
                "SELECT v.number, v.job_id, v.collection_id, j.kind FROM versions v "
                "LEFT JOIN jobs j ON j.id = v.job_id ORDER BY v.number"
            )
        ).all()
        self._number = {row.job_id: row.number for row in published}
        self._merges: dict[int, list[int]] = {}
        for row in published:
            if row.kind in ("rebuild", "compact"):
                self._merges.setdefault(row.collection_id, []).append(row.number)
        self._tombstones: dict[int, list[tuple[int, int | None]]] = {}
        for row in connection.execute(
            sa.text(
                "SELECT image_id, since_version, until_version FROM tombstones "
                "ORDER BY since_version"
            )
        ):
            hidden = (row.since_version, row.until_version)
            self._tombstones.setdefault(row.image_id, []).append(hidden)
        self._extracted: dict[int, set[int]] = {}
        parts = sa.text("SELECT job_id, args FROM parts WHERE stage = 'extract'")
        for row in connection.execute(parts.columns(args=sa.JSON())):
            for image_id in row.args["images"] if row.job_id in self._number else ():
                self._extracted.setdefault(image_id, set()).add(self._number[row.job_id])

    def stays(self, row: sa.Row[Any]) -> list[tuple[int, int | None, int | None]]:
        """Return from, until, and rows until, of every stay of an image."""
        last = self._number.get(row.job_id)
        begins = sorted({*self._extracted.get(row.id, ()), *([] if last is None else [last])})
        found: list[tuple[int, int | None, int | None]] = []
        free = 1  # the first version that no stay has yet
        for since, until in self._tombstones.get(row.id, ()):
            begun = [number for number in begins if free <= number <= since]
            found.append((begun[-1] if begun else free, since, until))
            if until is None:
                return found
            free = until
        if row.in_index:
            found.append((last if last is not None and last >= free else free, None, None))
        elif row.state == "removed" and last is not None and last >= free:
            merged = [n for n in self._merges.get(row.collection_id, ()) if n > last]
            found += [(last, merged[0], merged[0])] if merged else []
        return found


def _assign_anew(connection: sa.Connection) -> None:
    """Let jobs that stand after an assignment do it again: its parts say more now."""
    jobs = (
        "SELECT id FROM jobs WHERE state IN ('running', 'paused') "
        "AND kind IN ('index', 'rebuild') AND stage IN ('assign', 'merge', 'publish')"
    )
    connection.execute(
        sa.text(
            "DELETE FROM parts WHERE stage IN ('assign', 'merge', 'publish') "
            f"AND job_id IN ({jobs})"
        )
    )
    connection.execute(
        sa.text(f"UPDATE jobs SET stage = 'assign', attempt = attempt + 1 WHERE id IN ({jobs})")
    )
