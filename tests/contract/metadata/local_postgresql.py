"""A local PostgreSQL for the tests, if its programs are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.processes import free_port

USER = "nobody" if os.geteuid() == 0 else None
"""The user that runs it: it refuses to run as root."""


def find_programs() -> Path | None:
    """Return the folder with ``initdb`` and ``pg_ctl``: of a system package, or of a wheel."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).parent
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if packaged:
        return packaged[-1].parent
    try:
        import pgserver
    except ImportError:
        return None
    return Path(pgserver.__file__).parent / "pginstall" / "bin"


@contextmanager
def local_postgresql(programs: Path) -> Iterator[str]:
    """Run a server in a temporary folder; yields its URL."""
    with tempfile.TemporaryDirectory(prefix="vantage-postgresql-") as folder:
        data, port = Path(folder) / "data", free_port()
        if USER is not None:
            shutil.chown(folder, USER)
        _run(programs / "initdb", "-D", data, "-U", "vantage", "-A", "trust", "-E", "UTF8")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = Path(folder) / "log"
        _run(programs / "pg_ctl", "start", "-w", "-D", data, "-l", log, "-o", options)
        try:
            yield f"postgresql+psycopg://vantage@127.0.0.1:{port}/postgres"
        finally:
            _run(programs / "pg_ctl", "stop", "-w", "-m", "immediate", "-D", data)


def _run(program: Path, *arguments: str | Path) -> None:
    # Not captured by a pipe: the server would inherit it and keep it open.
    with tempfile.TemporaryFile() as said:
        status = subprocess.call(
            [program, *arguments], cwd="/", user=USER, stdout=said, stderr=said
        )
        said.seek(0)
        assert status == 0, said.read().decode()
