"""``vantage up``, ``vantage doctor``, ``vantage migrate``."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.config import MAX_GROUPS, Settings
from workers.cli import exits
from workers.cli.options import JsonOption, epilog
from workers.cli.output import say, to_stderr, write_json

if TYPE_CHECKING:
    from workers.up import Ready

UP_HELP = epilog(
    """
vantage up
VANTAGE_REDIS_URL=redis://10.0.0.5 vantage up --groups 2,3
""",
    """
Starts Redis (unless VANTAGE_REDIS_URL names one), migrates the database, starts the workers and
the Flower dashboard, and stops everything on Ctrl-C. Unfinished jobs continue at the next start.
""",
)

DOCTOR_HELP = epilog(
    """
vantage doctor
vantage doctor --warm
vantage doctor --json
vantage doctor --forget 91d0b6a2c4e8f357
""",
)

MIGRATE_HELP = epilog(
    """
vantage migrate
vantage migrate --new-identity
vantage migrate --take-store
""",
    """
Stop the workers and copy the database first. If it is up to date, nothing happens.
""",
)


def _parse_groups(text: str | None) -> list[int] | None:
    """Read ``2,3``."""
    if text is None:
        return None
    try:
        groups = [int(part) for part in text.split(",")]
    except ValueError:
        groups = [-1]
    if not all(0 <= group < MAX_GROUPS for group in groups):
        raise typer.BadParameter(
            f"{text!r}: give group numbers from 0 to {MAX_GROUPS - 1}, like 2,3"
        )
    return groups


def up(
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="N,N...", help="Groups to serve here; default: all.", show_default=False
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every line of every process.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run everything on this machine until Ctrl-C.

    With --json one document is printed when everything serves.
    """
    from workers.up import run_up

    def ready(info: Ready) -> None:
        if as_json:
            write_json(dataclasses.asdict(info))

    settings = Settings.from_env()
    serve_groups = _parse_groups(groups)
    raise typer.Exit(run_up(settings, serve_groups, on_ready=ready, verbose=verbose))


def doctor(
    warm: Annotated[
        bool, typer.Option("--warm", help="Compile the kernels now, so that no worker has to.")
    ] = False,
    forget: Annotated[
        str | None,
        typer.Option(
            metavar="IDENTITY",
            help="Remove what an installation that is gone has left in Redis; do nothing else.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine and the settings, and say how to fix problems."""
    from workers.doctor import checks
    from workers.doctor import warm as warm_kernels

    settings = Settings.from_env()
    if forget is not None:
        _forget(settings, forget, as_json)
        return
    took = None
    if warm:
        to_stderr("Compiling the kernels (only seconds if they were compiled before) ...")
        took = warm_kernels()
    found = checks(settings)
    ok = all(check.ok for check in found)
    if as_json:
        shown = [check.to_dict() for check in found]
        kernels = {} if took is None else {"kernels_s": round(took, 3)}
        write_json({"ok": ok, "checks": shown, **kernels})
    else:
        for check in found:
            say(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<10}  {check.detail}")
            if check.remedy:
                say(f"{'':16}  -> {check.remedy}")
        if took is not None:
            say(f"\nKernels ready after {took:.1f} s.")
        say("\nAll is well." if ok else "\nSomething must be done.")
    if not ok:
        raise typer.Exit(exits.TROUBLE)


def _forget(settings: Settings, identity: str, as_json: bool) -> None:
    """Remove the keys of an installation that is gone."""
    from pipeline.installation import find_installation
    from workers.context import Context
    from workers.leftovers import forget

    own = find_installation(settings.database_url)
    context = Context(settings)
    with context.broker_errors():
        removed = forget(context.redis_address, identity, own.identity if own else None)
    if as_json:
        write_json({"installation": identity, "keys": removed})
    else:
        say(f"{removed} keys of the installation {identity} were removed.")


def migrate(
    new_identity: Annotated[
        bool,
        typer.Option(
            "--new-identity",
            help="Make this an installation of its own, where a copy cannot be told from the "
            "original: that of a whole machine, or of the files of a PostgreSQL cluster.",
        ),
    ] = False,
    take_store: Annotated[
        bool,
        typer.Option(
            "--take-store", help="Let the store belong to this database, whose ever it was."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Migrate the database to this program's schema; give a copy an identity of its own."""
    from pipeline.installation import settle
    from pipeline.lost_database import refuse_lost_database
    from pipeline.metadata.engine import (
        create_metadata_engine,
        schema_revision,
        shown,
        upgrade,
    )
    from pipeline.private_files import take_over
    from pipeline.store_root import StoreRoot

    settings = Settings.from_env()
    engine = create_metadata_engine(settings.database_url)
    try:
        if not take_store:
            refuse_lost_database(engine, settings.store)
        with contextlib.suppress(OSError):  # it is not there yet, or may not be listed
            take_over(settings.home)
        before = schema_revision(engine)
        upgrade(engine)
        after = schema_revision(engine)
        root = StoreRoot(settings.store)
        own = settle(engine, root, to_stderr, force=new_identity, take=take_store)
    finally:
        engine.dispose()
    address = shown(engine.url)
    if as_json:
        names = {"database": address, "from": before, "to": after}
        write_json({**names, "installation": own.identity})
    elif before == after:
        say(f"{address} is up to date (schema {after}).")
    else:
        say(f"{address}: schema {before or 'none'} -> {after}.")
