from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from pipeline.errors import SchemaVersionError, StateError
from pipeline.job_params import CompactParams, IndexParams, RebuildParams
from pipeline.metadata import jobs
from pipeline.metadata.engine import (
    alembic_config,
    create_metadata_engine,
    migration_connection,
    require_schema,
    schema_revision,
    session_scope,
    upgrade,
)
from pipeline.metadata.models import SCHEMA_REVISION, Base
from pipeline.metadata.sqlite import make_file


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_metadata_engine(f"sqlite:///{tmp_path / '100 %.sqlite'}")
    make_file(engine)
    yield engine
    engine.dispose()


def _tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"alembic_version", "sqlite_sequence"}


def test_migrations_go_up_one_by_one_and_there_is_no_way_down(engine: Engine) -> None:
    script = ScriptDirectory.from_config(alembic_config())
    for step in reversed(list(script.walk_revisions())):
        upgrade(engine, step.revision)
        assert schema_revision(engine) == step.revision
    assert _tables(engine) == set(Base.metadata.tables)
    require_schema(engine)
    with (
        migration_connection(engine) as connection,
        pytest.raises(NotImplementedError, match="restore the backup"),
    ):
        command.downgrade(alembic_config(connection), "-1")


def test_models_equal_migrations(engine: Engine) -> None:
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def _definitions(engine: Engine) -> dict[str, list[str]]:
    """Every table and index with the lines that define it, whatever their order."""
    query = text("SELECT name, sql FROM sqlite_master WHERE tbl_name <> 'alembic_version'")
    with engine.connect() as connection:
        return {
            # A table that was copied has its name in quotation marks.
            name: sorted(line.strip(", \t") for line in (sql or "").replace('"', "").splitlines())
            for name, sql in connection.execute(query)
        }


def test_models_equal_migrations_to_the_last_constraint(engine: Engine, tmp_path: Path) -> None:
    # compare_metadata looks at neither AUTOINCREMENT nor the names of constraints.
    upgrade(engine)
    other = create_metadata_engine(f"sqlite:///{tmp_path / 'models.sqlite'}")
    make_file(other)
    Base.metadata.create_all(other)
    migrated = _definitions(engine)
    assert migrated == _definitions(other)
    other.dispose()


def test_former_parameters_of_jobs_are_typed_ones_process_and_origin(engine: Engine) -> None:
    owner = {"host": "a", "pid": 7, "started": 1.5}
    local = {"local": owner, "run": "r"}
    former: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("index", {"paths": ["/photos"]}),
        "2": ("index", {"paths": ["/photos", "/more"], **local}),
        "3": ("rebuild", {"above": 8}),
        "4": ("rebuild", {"paths": [], **local}),
        "5": ("compact", {"all": True}),
        "6": ("compact", {"above": 8, "paths": [], **local}),
    }
    upgrade(engine, "0001")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO collections (id, name, extractor, extractor_id, index_config, "
                "created_at) VALUES (1, 'c', '{}', 'e', '{}', 0)"
            )
        )
        for job_id, (kind, params) in former.items():
            connection.execute(
                text(
                    "INSERT INTO jobs (id, collection_id, kind, params, state, stage, attempt, "
                    "counters, created_at, attempt_at, progress_at) "
                    "VALUES (:id, 1, :kind, :params, 'running', 'merge', 1, '{}', 0, 0, 0)"
                ),
                {"id": job_id, "kind": kind, "params": json.dumps(params)},
            )
    upgrade(engine)
    with session_scope(engine, write=False) as session:
        found = {job.id: job for job in jobs.unfinished_jobs(session)}
    assert [found[job_id].params for job_id in sorted(found)] == [
        IndexParams(paths=("/photos",)),
        IndexParams(paths=("/photos", "/more")),
        RebuildParams(),
        RebuildParams(),
        CompactParams(everything=True),
        CompactParams(everything=False, above=8),
    ]
    own = [None if job.process is None else json.loads(job.process) for job in found.values()]
    assert own == [None, owner, None, owner, None, owner]
    origins = [found[job_id].origin for job_id in sorted(found)]
    assert origins == ["request", "request", "upkeep", "request", "request", "upkeep"]


def test_the_program_names_the_newest_migration() -> None:
    script = ScriptDirectory.from_config(alembic_config())
    assert script.get_heads() == [SCHEMA_REVISION]


def test_an_empty_database_is_not_accepted(engine: Engine) -> None:
    with pytest.raises(SchemaVersionError, match="at schema none"):
        require_schema(engine)
    upgrade(engine)
    require_schema(engine)


def test_a_database_of_a_newer_program_is_refused_and_left_alone(engine: Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaVersionError, match=r"at schema 9999.*install a newer Vantage"):
        require_schema(engine)
    with pytest.raises(SchemaVersionError, match="at schema 9999"):
        upgrade(engine)
    assert _tables(engine) == set(Base.metadata.tables)


def test_a_migration_that_fails_leaves_nothing_behind(engine: Engine) -> None:
    with engine.begin() as connection:
        # In the way of the last table, so that the others have been made before.
        connection.execute(text("CREATE TABLE version_segments (x INTEGER)"))
    with pytest.raises(StateError, match=r"stays as it was .* already exists"):
        upgrade(engine)
    assert _tables(engine) == {"version_segments"}
    assert schema_revision(engine) is None


def test_foreign_keys_are_checked_again_after_a_migration(engine: Engine) -> None:
    upgrade(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


UPGRADE = """
import sys
from pipeline.metadata.engine import create_metadata_engine, require_schema, upgrade
engine = create_metadata_engine(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
upgrade(engine)
require_schema(engine)
engine.dispose()
"""


def test_processes_that_upgrade_at_once_all_find_it_done(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'vantage.sqlite'}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert (process.returncode, errors) == (0, "")


def test_the_alembic_command_works_in_the_checkout(tmp_path: Path) -> None:
    checkout = Path(__file__).parents[2]
    url = f"sqlite:///{tmp_path / 'vantage.sqlite'}"
    for arguments in (["upgrade", "head"], ["check"]):
        subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=checkout,
            env={**os.environ, "VANTAGE_DATABASE_URL": url},
            check=True,
            capture_output=True,
            timeout=600,
        )
    engine = create_metadata_engine(url)
    require_schema(engine)
    engine.dispose()


def test_the_migrations_can_be_written_for_postgresql() -> None:
    config = alembic_config()
    config.set_main_option("sqlalchemy.url", "postgresql://me@host/vantage")
    config.output_buffer = io.StringIO()
    command.upgrade(config, "head", sql=True)
    script = config.output_buffer.getvalue()
    for name in Base.metadata.tables:
        assert f"CREATE TABLE {name} (" in script


def test_the_models_can_be_written_for_postgresql() -> None:
    statements = {
        name: str(CreateTable(table).compile(dialect=postgresql.dialect()))
        for name, table in Base.metadata.tables.items()
    }
    assert "id SERIAL NOT NULL" in statements["images"]
    assert "size BIGINT NOT NULL" in statements["locations"]
