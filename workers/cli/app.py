"""The application: commands, help, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.errors import StateError, VantageError
from workers.cli import exits
from workers.cli.output import ReaderGoneError, finish

__all__ = ["app"]

_HELP = """Index folders of photographs, then ask with a photograph where else a thing is.

Start everything on this machine with `vantage up`, or add --local to a command to do without."""

# Loading Rich takes longer than most commands.
_LOOK: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}

COMMANDS = {
    "up": ("operate:up", "Run everything on this machine until Ctrl-C."),
    "index": ("indexing:index", "Add the images of folders and files to a collection."),
    "search": ("search:search", "Find the images that show the same thing as a photograph."),
    "collections": ("show:collections", "List the collections."),
    "status": ("show:status", "Show collections, running jobs, and workers."),
    "failures": ("show:failures", "List the files that could not be indexed, and why."),
    "extractors": ("extractors:extractors", "List the extractors, with their licences."),
    "rebuild": ("indexing:rebuild", "Make a new tree and index, or change the extractor."),
    "compact": ("indexing:compact", "Merge a collection's segments, for faster searches."),
    "eval": ("evaluate:evaluate", "Measure how well and how fast queries are answered."),
    "verify": ("show:verify", "Compare every file of the store with its checksum."),
    "doctor": ("operate:doctor", "Check this machine and the settings."),
    "migrate": ("operate:migrate", "Migrate the database to this program's schema."),
}
"""By name, in the order of the help: module and function, loaded when used, and help line."""


class VantageGroup(TyperGroup):
    """The commands; `main` handles every exit."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": dict.fromkeys(COMMANDS)})

    def get_command(self, _context: object, name: str) -> Any:
        """Load a command; None if there is none of that name."""
        if name not in COMMANDS:
            return None
        module_name, _, function = COMMANDS[name][0].partition(":")
        module = import_module(f"workers.cli.{module_name}")
        single = typer.Typer(add_completion=False, **_LOOK)
        end = getattr(module, f"{function.upper()}_HELP")
        single.command(name, epilog=end)(getattr(module, function))
        return typer.main.get_command(single)

    def format_commands(self, _context: object, formatter: Any) -> None:
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

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
            # Anywhere on the line: nobody wants to retype it in another order.
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
        except OSError as error:
            if debug:
                raise
            code = exits.show_error(_trouble(error), "--json" in options)
        except typer.TyperException as error:
            code = exits.show_usage_error(error, "--json" in options)
        except exits.InterruptError as interrupt:
            code = exits.show_interrupt(str(interrupt), "--json" in options)
        except ReaderGoneError:
            # Python would complain once more when it closes standard output.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = exits.OK
        sys.exit(code or exits.OK)


def _trouble(error: OSError) -> VantageError:
    """Say which file or connection is the trouble."""
    what = f"{error.filename}: " if error.filename else ""
    return StateError(
        f"{what}{error.strerror or error}; check that it is there and that this user may use it "
        "(--debug shows where it was needed)"
    )


def _escape_what_cannot_be_written() -> None:
    """Write escapes to a terminal that lacks characters, instead of crashing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


app = typer.Typer(cls=VantageGroup, help=_HELP, epilog=exits.EXIT_CODES, **_LOOK)


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
