"""The application: its commands, its help, its way out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.errors import VantageError
from workers.cli import evaluate, exits, extractors, indexing, operate, search, show
from workers.cli.output import ReaderGoneError, finish

__all__ = ["app"]

_HELP = """Index folders of photographs, then ask with a photograph where else a thing is.

Start everything on this machine with `vantage up`, or add --local to a command to do without."""


class VantageGroup(TyperGroup):
    """The commands; every way out of them goes through `main`."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and leave with one of the exit codes of `exits`."""
        given = list(sys.argv[1:] if args is None else args)
        options = given[: given.index("--")] if "--" in given else given
        debug = "--debug" in options
        if debug:
            # Wherever it stands: nobody wants to type the line again in another order.
            given.remove("--debug")
        _escape_what_cannot_be_written()
        try:
            code = super().main(
                given, prog_name or "vantage", complete_var, standalone_mode=False, **extra
            )
            finish()
            if code == exits.INTERRUPTED:
                exits.show_interrupt("Interrupted.", "--json" in options)
        except VantageError as error:
            if debug:
                raise
            code = exits.show_error(error, "--json" in options)
        except typer.TyperException as error:
            code = exits.show_usage_error(error, "--json" in options)
        except exits.InterruptError as interrupt:
            code = exits.show_interrupt(str(interrupt), "--json" in options)
        except ReaderGoneError:
            # Python would complain once more when it closes standard output.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = exits.OK
        sys.exit(code or exits.OK)


def _escape_what_cannot_be_written() -> None:
    """Let a terminal that knows few characters get escapes instead of a crash."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


app = typer.Typer(
    cls=VantageGroup,
    help=_HELP,
    epilog=exits.EXIT_CODES,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        import importlib.metadata

        typer.echo(f"vantage {importlib.metadata.version('vantage-cbir')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show Python's traceback of an error.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(exits.USAGE)


for _name, _command, _help in (
    ("up", operate.up, operate.UP_HELP),
    ("index", indexing.index, indexing.INDEX_HELP),
    ("search", search.search, search.HELP),
    ("collections", show.collections, show.COLLECTIONS_HELP),
    ("status", show.status, show.STATUS_HELP),
    ("failures", show.failures, show.FAILURES_HELP),
    ("extractors", extractors.extractors, extractors.HELP),
    ("rebuild", indexing.rebuild, indexing.REBUILD_HELP),
    ("compact", indexing.compact, indexing.COMPACT_HELP),
    ("eval", evaluate.evaluate, evaluate.HELP),
    ("doctor", operate.doctor, operate.DOCTOR_HELP),
    ("migrate", operate.migrate, operate.MIGRATE_HELP),
):
    app.command(_name, epilog=_help)(_command)
