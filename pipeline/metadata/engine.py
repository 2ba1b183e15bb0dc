"""Engine, sessions, schema. The only place where errors of database drivers become ours."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy import (
    JSON,
    URL,
    Connection,
    Engine,
    bindparam,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, StaticPool

from pipeline.addresses import sqlite_file
from pipeline.errors import ConfigError, DatabaseUnavailableError, SchemaVersionError, StateError
from pipeline.metadata.models import SCHEMA_REVISION, Base
from pipeline.metadata.sqlite import is_missing, make_file, watch_file
from pipeline.redaction import without_secrets

if TYPE_CHECKING:
    from alembic.config import Config

BUSY_TIMEOUT_S = 10.0
"""How long a SQLite connection waits for another writer. A write here takes milliseconds."""

_SETTING = "VANTAGE_DATABASE_URL"
_READ_ONLY = "vantage_read_only"
_MIGRATION_LOCK = 0x56414E54  # any constant: the number of PostgreSQL's advisory lock
_MAY_NOT_WRITE = (
    "; this user may only read: let another one write, or permit it for the file and its folder"
)
_REMEDIES = {
    "SQLITE_READONLY": _MAY_NOT_WRITE,
    "SQLITE_READONLY_DIRECTORY": _MAY_NOT_WRITE,
    "SQLITE_READONLY_CANTINIT": _MAY_NOT_WRITE,
    "SQLITE_READONLY_RECOVERY": _MAY_NOT_WRITE,
    "SQLITE_CANTOPEN": _MAY_NOT_WRITE,
}
# Alembic's environment is global to the process.
_alembic_lock = threading.Lock()


def create_metadata_engine(url: str) -> Engine:
    """Return an engine for the metadata database; nothing is connected yet.

    An engine may be used by all threads of one process, never by a forked child: every process
    makes its own.

    Parameters
    ----------
    url : str
        ``sqlite:///FILE`` (a path as it is written; `upgrade` makes it) or
        ``postgresql://USER:PASSWORD@HOST/NAME``.

    Raises
    ------
    ConfigError
        Not such an address, or the PostgreSQL driver is not installed.
    """
    return _engine_of(parse_url(url))


def after_fork(engine: Engine) -> Engine:
    """Return an engine on the same database for a forked child, which may not use its parent's."""
    return _engine_of(engine.url)


def _engine_of(parsed: URL) -> Engine:
    """Return an engine on a parsed address."""
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed)
    try:
        _require_options(parsed)
        return create_engine(
            parsed,
            pool_size=2,
            max_overflow=6,
            pool_pre_ping=True,
            pool_recycle=3600,
            connect_args={"connect_timeout": 10},
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            _SETTING,
            shown(parsed),
            "needs the PostgreSQL driver: pip install 'vantage-cbir[postgresql]'",
        ) from error


def _require_options(parsed: URL) -> None:
    """Refuse a port or an option in the address of a PostgreSQL database that cannot be.

    Raises
    ------
    ConfigError
    ModuleNotFoundError
        The driver, which knows the options, is not installed.
    """
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise ConfigError(_SETTING, shown(parsed), "the port must be a number from 1 to 65535")
    psycopg: Any = import_module("psycopg")
    try:
        import_module("psycopg.conninfo").make_conninfo(**dict(parsed.query))
    except (psycopg.ProgrammingError, TypeError) as error:
        told = f"an option after ? is not known: {str(error).strip()}"
        raise ConfigError(_SETTING, shown(parsed), told) from error


def parse_url(url: str) -> URL:
    """Return the address with the driver that Vantage uses.

    Raises
    ------
    ConfigError
        Not an address of a SQLite file or of PostgreSQL.
    """
    allowed = "must be sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
    path = sqlite_file(url)
    if path is not None:
        if not path or path == ":memory:":
            raise ConfigError(_SETTING, url, "must name a file: several processes share it")
        return URL.create("sqlite+pysqlite", database=path)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(_SETTING, without_secrets(url), allowed) from None
    if parsed.get_backend_name() == "sqlite":
        allowed = "must name a file: several processes share it"
        raise ConfigError(_SETTING, without_secrets(url), allowed)
    if parsed.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigError(_SETTING, shown(parsed), allowed)


def shown(url: URL) -> str:
    """Return an address for people, without its password; a path as it is written."""
    if url.get_backend_name() == "sqlite":
        return f"{url.drivername}:///{url.database}"
    return without_secrets(url.render_as_string(hide_password=False))


def database_exists(url: str) -> bool:
    """Tell whether there may be a database at an address; looks for a SQLite file, makes none."""
    parsed = parse_url(url)
    return parsed.get_backend_name() != "sqlite" or Path(str(parsed.database)).exists()


def _sqlite_engine(url: URL) -> Engine:
    """Engine on a SQLite file: write-ahead log; a writer waits for the one before it."""
    path = Path(str(url.database))
    if is_read_only(path):
        return _reading_engine(url, path)
    # Connections are cheap and writers queue on the file, so threads never wait for the pool.
    engine = create_engine(
        url, pool_size=4, max_overflow=-1, connect_args={"timeout": BUSY_TIMEOUT_S}
    )
    watch_file(engine)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def is_read_only(path: Path) -> bool:
    """Tell whether there is such a database, and this user may read it only."""
    try:
        return path.stat().st_size > 0 and not (
            os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
        )
    except OSError:
        return False


def _reading_engine(url: URL, path: Path) -> Engine:
    """Engine on a SQLite file that this user may only read; writing says so.

    SQLite wants to write even when it reads a database with a write-ahead log. If nobody has it
    open, there is no log, and nothing changes: then the file is read as it is. Otherwise the files
    of those who have it open are used. Each session looks anew.
    """

    def connect() -> sqlite3.Connection:
        try:
            log = path.with_name(f"{path.name}-wal").stat().st_size
        except OSError:
            log = 0
        address = f"file:{quote(os.fsencode(path))}?mode=ro" + ("" if log else "&immutable=1")
        return sqlite3.connect(address, timeout=BUSY_TIMEOUT_S, uri=True, check_same_thread=False)

    engine = create_engine(url, creator=connect, poolclass=NullPool)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    """Set up a new SQLite connection."""
    # The driver begins no transaction by itself: `_begin_sqlite` does.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        # SQLite does not wait here for other processes that open the new file at the same time. One
        # of them succeeds, and the file keeps the mode.
        with suppress(connection.OperationalError):
            cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    """Begin a transaction; writers take the write lock at once, so that none fails half-way."""
    read_only = bool(connection.get_execution_options().get(_READ_ONLY, False))
    if connection.info.get(_READ_ONLY, False) != read_only:
        connection.exec_driver_sql(f"PRAGMA query_only={int(read_only)}")
        connection.info[_READ_ONLY] = read_only
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def session_scope(engine: Engine, write: bool = True) -> Iterator[Session]:
    """Give a session with one transaction around the block.

    Parameters
    ----------
    engine : Engine
    write : bool
        True: commit at the end, roll back on any error. On SQLite it holds the write lock from the
        start, so keep the block short. False: the database refuses writes; any number of readers
        may run beside a writer.

    Raises
    ------
    DatabaseUnavailableError
        The database cannot be reached, is locked, full or read-only.
    SchemaVersionError
        It lacks tables or columns that this program needs.
    StateError
        The file is not a database or is damaged.
    """
    with driver_errors(engine), Session(engine) as session:
        if write:
            session.connection()
        else:
            session.connection(execution_options={_READ_ONLY: True, "postgresql_readonly": True})
        yield session
        if write:
            session.commit()


@contextmanager
def driver_errors(engine: Engine) -> Iterator[None]:
    """Turn the errors of the database driver into errors of Vantage."""
    try:
        yield
    except PoolTimeoutError as error:
        raise DatabaseUnavailableError(_reason(engine, error)) from error
    except DBAPIError as error:
        ours = _translate(engine, error)
        if ours is None:
            raise
        raise ours from error


def _translate(engine: Engine, error: DBAPIError) -> Exception | None:
    """Return our error for one of the driver, or None if it is a bug in this program."""
    name = str(getattr(error.orig, "sqlite_errorname", ""))
    if name in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
        return StateError(
            f"the database is damaged or no database ({_reason(engine, error)}); "
            "restore it from a copy, or move it away to start anew"
        )
    if _is_wrong_statement(error):
        found = _found_revision(engine)
        return None if found == SCHEMA_REVISION else SchemaVersionError(found, SCHEMA_REVISION)
    if name.startswith("SQLITE_BUSY"):
        held = f"another process has held its write lock for {BUSY_TIMEOUT_S:g} s; wait, or end it"
        return DatabaseUnavailableError(f"{_reason(engine, error)}: {held}")
    if is_missing(engine):
        gone = "there is no such file; restore it from the backup, or let `vantage up` make one"
        return DatabaseUnavailableError(f"{shown(engine.url)}: {gone}")
    if isinstance(error, OperationalError) or error.connection_invalidated:
        return DatabaseUnavailableError(_reason(engine, error))
    return None


def _is_wrong_statement(error: DBAPIError) -> bool:
    """Tell whether the database did not understand the statement, as when a table is missing."""
    name = getattr(error.orig, "sqlite_errorname", "")
    return name == "SQLITE_ERROR" or isinstance(error, ProgrammingError)


def _reason(engine: Engine, error: Exception) -> str:
    """Return the address without its password and the driver's first line."""
    cause = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    remedy = _REMEDIES.get(str(getattr(cause, "sqlite_errorname", "")), "")
    return f"{shown(engine.url)}: {lines[0]}{remedy}"


def _found_revision(engine: Engine) -> str | None:
    """Return the revision, or None if it cannot be read."""
    try:
        return _read_revision(engine)
    except DatabaseError:
        return None


def _read_revision(engine: Engine) -> str | None:
    """Read the revision that Alembic noted in the database."""
    with engine.connect().execution_options(**{_READ_ONLY: True}) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def schema_revision(engine: Engine) -> str | None:
    """Return the schema revision of the database, None for an empty or missing one."""
    if is_missing(engine):
        return None
    with driver_errors(engine):
        return _read_revision(engine)


def require_schema(engine: Engine) -> None:
    """Check that the database has the schema of this program.

    Raises
    ------
    SchemaVersionError
        It has another one or none, or there is no such file (`vantage migrate` then says whether
        one was lost).
    DatabaseUnavailableError
        It does not answer.
    """
    found = schema_revision(engine)
    if found != SCHEMA_REVISION:
        raise SchemaVersionError(found, SCHEMA_REVISION)


@contextmanager
def open_database(
    url: str, *, make: bool = True, check: Callable[[Engine], None] = lambda _: None
) -> Iterator[Engine]:
    """Give an engine on a database of this program's schema, see `prepare_schema`.

    Parameters
    ----------
    url : str
    make : bool
        False: a SQLite file that does not exist is not made, an empty database in memory stands for
        it. For reading only.
    check : callable
        Called before anything is made.
    """
    engine = create_metadata_engine(url)
    try:
        check(engine)
        if not make and is_missing(engine):
            engine = create_engine("sqlite://", poolclass=StaticPool)
            Base.metadata.create_all(engine)
        else:
            prepare_schema(engine)
        yield engine
    finally:
        engine.dispose()


def prepare_schema(engine: Engine) -> None:
    """Set up an empty database; any other must have this program's schema.

    Raises
    ------
    SchemaVersionError
        It has another schema: the user must decide to run `vantage migrate`.
    DatabaseUnavailableError
        It does not answer.
    """
    if schema_revision(engine) is None:
        upgrade(engine)
    require_schema(engine)


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate the database to a schema revision, by default that of this program.

    Safe if several processes do it at once: one works, the others wait. All or nothing.

    Raises
    ------
    SchemaVersionError
        The database is at a revision that this program does not know.
    """
    if revision == "head" and schema_revision(engine) == SCHEMA_REVISION:
        return
    try:
        make_file(engine)
    except OSError as error:
        reason = f"its file cannot be made ({error.strerror})"
        raise ConfigError(_SETTING, shown(engine.url), reason) from error
    _migrate(engine, revision)


def _migrate(engine: Engine, revision: str) -> None:
    """Run Alembic on a locked connection."""
    from alembic import command  # not at the top: only few processes ever migrate
    from alembic.util import CommandError

    with _alembic_lock, driver_errors(engine), migration_connection(engine) as connection:
        try:
            command.upgrade(alembic_config(connection), revision)
            _record_place(connection)
        except CommandError as error:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            raise SchemaVersionError(found, SCHEMA_REVISION) from error
        except DBAPIError as error:
            if not _is_wrong_statement(error):
                raise
            raise StateError(
                f"the database cannot be migrated and stays as it was ({_reason(engine, error)}); "
                "does it hold tables that are not of Vantage?"
            ) from error


def _record_place(connection: Connection) -> None:
    """Record where a new database is, so that a copy of it is recognised."""
    if not inspect(connection).has_table("installation"):
        return
    from pipeline.metadata.installation import place_of

    statement = text("UPDATE installation SET place = :place WHERE place IS NULL")
    typed = statement.bindparams(bindparam("place", type_=JSON))
    connection.execute(typed, {"place": dict(place_of(connection))})


def alembic_config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration for the installed `migrations` package."""
    from alembic.config import Config

    import migrations

    config = Config()
    folder = str(Path(str(migrations.__file__)).parent)
    config.set_main_option("script_location", folder.replace("%", "%%"))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


@contextmanager
def migration_connection(engine: Engine) -> Iterator[Connection]:
    """Give a connection in a transaction that excludes all other migrations."""
    with engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            with connection.begin():
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
                yield connection
            return
        # A migration may copy and drop a table (SQLite's only way to change one), which must not
        # touch rows that refer to it. The switch works only outside transactions.
        _sqlite_foreign_keys(connection, on=False)
        try:
            with connection.begin():
                yield connection
        finally:
            _sqlite_foreign_keys(connection, on=True)


def _sqlite_foreign_keys(connection: Connection, *, on: bool) -> None:
    """Switch the checking of foreign keys on the driver's connection."""
    driver: Any = connection.connection.driver_connection
    driver.execute(f"PRAGMA foreign_keys={int(on)}").close()
