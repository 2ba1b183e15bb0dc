"""Checks of this machine and its settings; repair and preparation.

``python -m workers.doctor`` prints the checks, ``--repair-opencv`` makes `import cv2` work where
the system lacks libGL, ``--warm`` compiles the kernels.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.addresses import sqlite_file, store_folder
from pipeline.config import Settings
from pipeline.cores import usable_cores
from pipeline.errors import (
    DatabaseUnavailableError,
    SchemaVersionError,
    StateError,
    VantageError,
)
from pipeline.machine_code_file import machine_code_folder
from pipeline.text import seconds
from workers.compiled import note_compiled

if TYPE_CHECKING:
    import redis

    from workers.redis_url import RedisAddress

__all__ = ["Check", "checks", "main", "repair_opencv", "running_redis", "warm"]

_LOW_SPACE_BYTES = 2 * 2**30
_PORT_S = 1.0


@dataclass(frozen=True)
class Check:
    """One line of ``vantage doctor``.

    Attributes
    ----------
    name : str
    ok : bool
        False: something will not work until the remedy is done.
    detail : str
        What was found.
    remedy : str
        What to do; empty if all is well.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values."""
        return asdict(self)


def checks(settings: Settings) -> list[Check]:
    """Check everything that a run needs; change nothing but probe files.

    Parameters
    ----------
    settings : Settings

    Returns
    -------
    list of Check
        In reading order. A check that raises counts as failed.
    """
    found: list[Check] = []
    silent = False  # each try at a database that does not answer may take ten seconds
    for name, look in _CHECKS:
        if silent and name in _OF_DATABASE:
            found.append(Check(name, False, "not tried: the database does not answer"))
            continue
        try:
            found += look(settings)
        except DatabaseUnavailableError as error:
            silent = True
            remedy = "start it or end what keeps it, or correct VANTAGE_DATABASE_URL"
            found.append(_failed(name, error, remedy))
        except (VantageError, OSError, ValueError, ImportError) as error:
            found.append(_failed(name, error, "see the message"))
    return found


def _failed(name: str, error: Exception, remedy: str) -> Check:
    """Return the check that has raised an error."""
    from pipeline.redaction import redacted, secrets_of_environment

    secrets = secrets_of_environment(os.environ)
    return Check(name, False, redacted(f"{type(error).__name__}: {error}", secrets), remedy)


def _python(_settings: Settings) -> Iterator[Check]:
    version = platform.python_version()
    ok = sys.version_info >= (3, 11)
    remedy = "" if ok else "install Python 3.11 or newer: make PYTHON=python3.12 setup"
    yield Check("python", ok, f"{version} on {platform.system()} {platform.machine()}", remedy)


def _cpu(_settings: Settings) -> Iterator[Check]:
    from llvmlite.binding import get_host_cpu_features

    features = get_host_cpu_features()
    known = [n for n in ("avx512vnni", "avx512bw", "avxvnni", "avx2", "dotprod") if features.get(n)]
    usable, there = usable_cores(), os.cpu_count() or 1
    cores = f"{there} cores" if usable == there else f"{usable} of {there} cores"
    # Slower kernels are not a failure: every path gives the same results.
    yield Check("cpu", True, f"{cores}, {', '.join(known) or 'portable kernels'}")


def _opencv(_settings: Settings) -> Iterator[Check]:
    try:
        import cv2
    except ImportError as error:
        yield Check("opencv", False, str(error), "python -m workers.doctor --repair-opencv")
        return
    lacking = [name for name in ("SIFT_create",) if not hasattr(cv2, name)]
    remedy = "pip install --force-reinstall opencv-contrib-python" if lacking else ""
    detail = f"{cv2.__version__}" + (f", without {', '.join(lacking)}" if lacking else "")
    yield Check("opencv", not lacking, detail, remedy)


def _redis(settings: Settings) -> Iterator[Check]:
    from workers.embedded import discover_redis_url
    from workers.redis_url import RedisAddress
    from workers.server_programs import find_server

    url = discover_redis_url(settings)
    if url is None:
        try:
            program = find_server()
        except StateError as error:
            yield Check("redis", False, "no server program", str(error))
            return
        version = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout.strip()
        yield Check("redis", True, f"not running; `vantage up` starts {program} ({version})")
        return
    yield running_redis(RedisAddress.parse(url))


def running_redis(address: RedisAddress) -> Check:
    """Try everything that will be needed of a Redis that answers."""
    import redis

    from workers.redis_check import refusals
    from workers.redis_url import reason

    client = address.client(address.broker_db, timeout_s=2.0)
    try:
        began = time.perf_counter()
        client.ping()
        took = (time.perf_counter() - began) * 1000
        refused = refusals(address)
        info = _information(client)
    except redis.RedisError as error:
        told = f"{address}: {reason(error)}"
        return Check("redis", False, told, "start it, or check VANTAGE_REDIS_URL")
    finally:
        client.close()
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        remedy = "workers wait until it is accepted; see docs/operations.md, Your own Redis"
        return Check("redis", False, f"{address} refuses {refused[0]}{more}", remedy)
    version, role, policy = (
        str(info.get(name, "?")) for name in ("redis_version", "role", "maxmemory_policy")
    )
    detail = f"{version} at {address}, {role}, {policy}, {took:.1f} ms"
    if role == "slave":
        return Check("redis", False, detail, "use the primary: a replica takes no messages")
    if policy != "noeviction" and info.get("maxmemory", 0):
        remedy = "CONFIG SET maxmemory-policy noeviction: an evicted key may hang a job"
        return Check("redis", False, detail, remedy)
    return Check("redis", True, detail)


def _information(client: redis.Redis) -> dict[str, Any]:
    """Return what Redis tells about itself; nothing without the right to ask."""
    import redis

    try:
        return dict(client.info())
    except redis.ResponseError:
        return {}


def _sharing(settings: Settings) -> Iterator[Check]:
    """Say which installations use this Redis, and whether another database has our identity."""
    import redis

    from pipeline.installation import find_installation
    from workers.context import Context
    from workers.embedded import discover_redis_url
    from workers.leftovers import left_behind
    from workers.presence import installations, require_claim

    if discover_redis_url(settings) is None:
        return
    own = find_installation(settings.database_url)
    context = Context(settings, identity=own.identity if own else "none")
    try:
        if own is not None:
            require_claim(context)
        found = installations(context.redis)
        left = left_behind(context.redis_address, own.identity if own else None)
    except redis.RedisError:
        return  # the check of Redis says it
    finally:
        context.close()
    for one in found:
        ours = own is not None and one.identity == own.identity
        ago = seconds(max(0.0, time.time() - one.seen_at))
        yield Check(
            "sharing",
            True,
            f"{'this' if ours else 'another'} installation, {one.identity}: {one.database}, host "
            f"{one.host}, seen {ago} ago",
        )
    for identity, count in left.items():
        detail = f"an installation that nobody has seen for a day, {identity}, has {count} keys"
        remedy = f"if it is gone for good: vantage doctor --forget {identity}"
        yield Check("sharing", True, detail, remedy)


def _database(settings: Settings) -> Iterator[Check]:
    from pipeline.metadata.engine import create_metadata_engine, schema_revision, shown
    from pipeline.metadata.models import SCHEMA_REVISION

    sqlite = sqlite_file(settings.database_url)
    if sqlite and not Path(sqlite).exists():
        yield Check("database", True, f"none yet; `vantage up` makes {sqlite}")
        return
    engine = create_metadata_engine(settings.database_url)
    try:
        found = schema_revision(engine)
    finally:
        engine.dispose()
    detail = f"{shown(engine.url)}, schema {found or 'none'}"
    ok = found == SCHEMA_REVISION
    remedy = "" if ok else str(SchemaVersionError(found, SCHEMA_REVISION))
    yield Check("database", ok, detail, remedy)


def _installation(settings: Settings) -> Iterator[Check]:
    """Check that database and store belong together."""
    from pipeline.installation import check_store, find_installation
    from pipeline.metadata.engine import create_metadata_engine
    from pipeline.store_root import StoreRoot

    own = find_installation(settings.database_url)
    if own is None:
        yield Check("identity", True, "none yet; `vantage up` makes it")
        return
    engine = create_metadata_engine(settings.database_url)
    try:
        check_store(engine, StoreRoot(settings.store))
    finally:
        engine.dispose()
    yield Check("identity", True, f"{own.identity}, of database and store")


def _directories(settings: Settings) -> Iterator[Check]:
    """Home, store and local copies: writable, with free space."""
    from pipeline.redaction import without_secrets

    places = {"home": str(settings.home), "store": settings.store, "local": str(settings.local)}
    for name, place in places.items():
        path = store_folder(place)
        if path is None:
            yield Check(name, True, f"{without_secrets(place)} (not checked from here)")
            continue
        existing = next(p for p in (path, *path.parents) if p.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            remedy = f"make it writable for this user, or set VANTAGE_{name.upper()}"
            yield Check(name, False, f"{path}: {error.strerror}", remedy)
            continue
        free = shutil.disk_usage(existing).free
        ok = free >= _LOW_SPACE_BYTES
        remedy = "" if ok else f"free some space, or set VANTAGE_{name.upper()}"
        yield Check(name, ok, f"{path}, {free / 2**30:.1f} GiB free", remedy)


def _store_files(settings: Settings) -> Iterator[Check]:
    """Name files that the store lacks, without reading them, and what workers cannot read."""
    from pipeline.metadata.engine import create_metadata_engine, schema_revision
    from pipeline.metadata.models import SCHEMA_REVISION
    from pipeline.status import read_status
    from pipeline.store_check import MOST_SHOWN

    sqlite = sqlite_file(settings.database_url)
    if sqlite is not None and not Path(sqlite).exists():
        return
    engine = create_metadata_engine(settings.database_url)
    try:
        if schema_revision(engine) != SCHEMA_REVISION:
            return
        found = read_status(settings, engine, None)
    finally:
        engine.dispose()
    for file in found.files[:MOST_SHOWN]:
        what = f"{file.collection}: {file.kind} {file.key} is {file.state}" if file.key else ""
        detail = f"{what} ({file.reason})" if what else file.reason
        yield Check("store files", False, detail, file.remedy)
    for sentence in found.troubles:
        yield Check("store files", False, sentence, "see the message")
    if not found.files and not found.troubles:
        looked = store_folder(settings.store) is not None
        seen = "all there" if looked else "not looked at from here"
        yield Check("store files", True, f"{seen}; `vantage verify` compares every byte")


def _image_roots(settings: Settings) -> Iterator[Check]:
    for root in settings.image_roots:
        ok = os.access(root, os.R_OK | os.X_OK)
        remedy = "" if ok else "mount it, or change VANTAGE_IMAGE_ROOTS"
        yield Check("image root", ok, root if ok else f"{root} cannot be read", remedy)


def _kernels(_settings: Settings) -> Iterator[Check]:
    """Check that compiled kernels can be kept: otherwise every process compiles them again."""
    folder = machine_code_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if os.access(there, os.W_OK):
        yield Check("kernels", True, f"kept in {folder}")
    else:
        yield Check("kernels", False, f"{folder} is not writable", "set NUMBA_CACHE_DIR elsewhere")


def _extractor(settings: Settings) -> Iterator[Check]:
    """Check the extractor of new collections, and list broken ones of other packages."""
    from pipeline.extraction.listing import list_extractors

    (default,) = list_extractors([settings.extractor_spec])
    detail = f"{default.name}, {default.dimensions} numbers a descriptor"
    if default.usable:
        yield Check("extractor", True, detail)
    else:
        yield Check("extractor", False, default.reason, "change VANTAGE_EXTRACTOR, or repair it")
    for info in list_extractors():
        # This concerns only those who use it: everything else works.
        if not info.usable and info.name != settings.extractor.name:
            yield Check("extractor", True, f"{info.name} cannot be used: {info.reason}")


def _flower(settings: Settings) -> Iterator[Check]:
    from workers.dashboard import check_flower_settings, flower_file, why_taken
    from workers.processes import read_json

    check_flower_settings(settings)
    running = read_json(flower_file(settings.home))
    if running:
        yield Check("flower", True, str(running["url"]))
        return
    place = f"{settings.flower_address}:{settings.flower_port}"
    lost = why_taken(settings.flower_address, 0)
    if lost:
        remedy = "set VANTAGE_FLOWER_ADDRESS; everything else works without Flower"
        yield Check("flower", False, f"{place}: {lost}", remedy)
        return
    reason = why_taken(settings.flower_address, settings.flower_port)
    free = f"{place} is free" if settings.flower_port else "takes a free port"
    yield Check("flower", True, f"{place}: {reason}; Flower takes a free port" if reason else free)


def _cache(settings: Settings) -> Iterator[Check]:
    from pipeline.metadata.engine import create_metadata_engine, database_exists, session_scope
    from pipeline.metadata.heartbeats import live_workers
    from workers.cache_status import read_cache_status

    hosts = []
    if database_exists(settings.database_url):
        engine = create_metadata_engine(settings.database_url)
        try:
            with session_scope(engine, write=False) as session:
                hosts = live_workers(session, time.time(), settings.host_timeout_s)
        finally:
            engine.dispose()
    found = read_cache_status(settings, hosts)
    wrong = {server.sentence() for server in found.servers if server.trouble}
    for line in found.sentences() or ["not running; `vantage up` starts it"]:
        if line not in wrong:
            yield Check("cache", True, line)
    for trouble, remedy in found.troubles():
        yield Check("cache", False, trouble, remedy)


def _workers(settings: Settings) -> Iterator[Check]:
    from pipeline.metadata.engine import create_metadata_engine, database_exists, session_scope
    from pipeline.metadata.heartbeats import live_workers
    from pipeline.metadata.sqlite import LOCKED, is_locked

    if not database_exists(settings.database_url):
        yield Check("workers", True, "none: `vantage up` starts them")
        return
    engine = create_metadata_engine(settings.database_url)
    try:
        with session_scope(engine, write=False) as session:
            hosts = live_workers(session, time.time(), settings.host_timeout_s)
        locked = not hosts and is_locked(engine)
    finally:
        engine.dispose()
    if locked:
        yield Check("workers", False, LOCKED, "find and end it: `lsof` or `fuser` name it")
        return
    listing = ", ".join(f"{host.name} ({host.state})" for host in hosts)
    yield Check("workers", True, listing or "none: `vantage up` starts them")


_CHECKS: tuple[tuple[str, Callable[[Settings], Iterator[Check]]], ...] = (
    ("python", _python),
    ("cpu", _cpu),
    ("opencv", _opencv),
    ("redis", _redis),
    ("database", _database),
    ("identity", _installation),
    ("sharing", _sharing),
    ("directories", _directories),
    ("store files", _store_files),
    ("image roots", _image_roots),
    ("kernels", _kernels),
    ("extractor", _extractor),
    ("cache", _cache),
    ("flower", _flower),
    ("workers", _workers),
)

_OF_DATABASE = frozenset({"database", "identity", "sharing", "store files", "cache", "workers"})
"""Checks that ask the database."""


def warm() -> float:
    """Compile every kernel, or load it from the cache; returns the seconds it took.

    Includes those of extractors, so that the first photograph does not wait.
    """
    from pipeline.extraction.registry import warm_up_all
    from pipeline.index.warm import warm_up

    began = time.perf_counter()
    warm_up()
    warm_up_all()
    note_compiled()
    return time.perf_counter() - began


def repair_opencv() -> str:
    """Make `import cv2` work if the system lacks libraries of the full build (libGL).

    The headless build of the same version is the same library without windows. Both own the same
    files, so the full build is removed first.

    Returns
    -------
    str
        What was done, one line.

    Raises
    ------
    StateError
        It still cannot be imported, or fails for a reason other than a missing library.
    """
    problem = _import_problem()
    if problem is None:
        return "OpenCV can be imported"
    if "cannot open shared object file" not in problem:
        raise StateError(f"OpenCV cannot be imported: {problem}")
    full = "opencv-contrib-python"
    version = importlib.metadata.version(full)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "uninstall", "--yes", full], check=True)
    try:
        subprocess.run([*pip, "install", f"{full}-headless=={version}"], check=True)
    except subprocess.CalledProcessError as error:
        subprocess.run([*pip, "install", f"{full}=={version}"], check=False)
        raise StateError(
            f"{full}-headless {version} could not be installed; install libGL instead: "
            "apt install libgl1 (Debian, Ubuntu) or dnf install mesa-libGL (Fedora)"
        ) from error
    problem = _import_problem()
    if problem is not None:
        raise StateError(f"OpenCV cannot be imported, the headless build neither: {problem}")
    return f"installed {full}-headless {version}: this system has no libGL"


def _import_problem() -> str | None:
    """Import cv2 in a fresh process; return the last line of its error."""
    done = subprocess.run(
        [sys.executable, "-c", "import cv2"], capture_output=True, text=True, check=False
    )
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else (lines[-1] if lines else f"status {done.returncode}")


def main() -> None:
    """Entry point of ``python -m workers.doctor``."""
    parser = argparse.ArgumentParser(prog="python -m workers.doctor", description=__doc__)
    parser.add_argument("--repair-opencv", action="store_true", help="make `import cv2` work")
    parser.add_argument("--warm", action="store_true", help="compile the kernels")
    options = parser.parse_args()
    try:
        if options.repair_opencv:
            print(repair_opencv())
        if options.warm:
            print(f"kernels ready after {warm():.1f} s")
        if options.repair_opencv or options.warm:
            return
        found = checks(Settings.from_env())
    except VantageError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    for check in found:
        mark = "ok  " if check.ok else "FAIL"
        print(f"{mark} {check.name:<12} {check.detail}")
        if check.remedy:
            print(f"     {'':<12} -> {check.remedy}")
    raise SystemExit(0 if all(check.ok for check in found) else 1)


if __name__ == "__main__":
    main()
