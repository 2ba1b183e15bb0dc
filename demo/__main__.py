"""The command line of the demonstration."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from demo import samples, show, system
from demo.samples import DemoQuery
from demo.searches import Row, search_all
from pipeline.errors import InputError, VantageError

DEFAULT_OUTPUT = Path(__file__).parent / "results.html"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    epilog="Examples: python -m demo · python -m demo --photos ~/Pictures --query sofa.jpg"
)
def demonstrate(
    photos: Annotated[
        Path | None,
        typer.Option(help="Folder of photographs to index instead of the samples."),
    ] = None,
    query: Annotated[
        list[Path] | None,
        typer.Option(
            help="Picture to search with instead of views of the photographs; repeatable."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where to write the page.")] = DEFAULT_OUTPUT,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary home.")] = False,
) -> None:
    """Start Vantage, index photographs, find them again in changed views of them, stop."""
    console = Console()
    errors = Console(stderr=True)
    # A make variable keeps its tilde.
    photos = photos.expanduser() if photos else None
    query = [path.expanduser() for path in query or []]
    workspace = Path(tempfile.mkdtemp(prefix="vantage-demo-"))
    try:
        _check_arguments(photos, query, output)
        folders, queries = _material(photos, query, workspace)
    except InputError as error:
        shutil.rmtree(workspace, ignore_errors=True)
        errors.print(f"[red]demo:[/] {show.plain(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        _run(console, folders, queries, output, workspace, own=photos is not None)
    except VantageError as error:
        errors.print(f"[red]demo:[/] {show.plain(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    finally:
        if keep:
            console.print(f"The home is kept: {show.plain(str(workspace))}")
        else:
            shutil.rmtree(workspace, ignore_errors=True)


def _run(
    console: Console,
    folders: list[Path],
    queries: list[DemoQuery],
    output: Path,
    workspace: Path,
    *,
    own: bool,
) -> None:
    """Start, index, search, show, stop."""
    started = time.perf_counter()
    home = workspace / "home"
    home.mkdir()
    system.isolate_environment(home, None if own else system.SAMPLE_CELL_SIZE)
    console.print("Starting Redis, workers and Flower ...")
    with system.running_system(console) as running:
        console.print(f"Ready after {time.perf_counter() - started:.1f} s.")
        if running.flower_url:
            where = f"user vantage, password in {home / 'run' / 'flower.json'}"
            console.print(
                f"Flower shows the tasks at {show.plain(running.flower_url)} ({show.plain(where)})"
            )
        running.index(folders)
        rows: list[Row] = []
        with console.status("Searching ...") as status:
            for row in search_all(queries, running.search):
                rows.append(row)
                status.update(f"Searching: {len(rows)} of {len(queries)} pictures")
        show.print_rows(console, rows)
        show.write_page(rows, output, "A ring marks the photograph that the view was made from.")
        console.print(f"Pictures: {show.plain(str(output.absolute()))}", soft_wrap=True)
    console.print(f"Everything is shut down, after {time.perf_counter() - started:.0f} s.")


def _check_arguments(photos: Path | None, queries: list[Path], output: Path) -> None:
    """Refuse what cannot work, before anything is started."""
    if photos is not None:
        if not photos.is_dir():
            kind = "a file" if photos.exists() else "missing"
            raise InputError(f"--photos {str(photos)!r} is {kind}; name a folder of photographs")
        samples.image_files(photos)
    for query in queries:
        if not query.is_file():
            kind = "a folder" if query.is_dir() else "missing"
            raise InputError(f"--query {str(query)!r} is {kind}; name an image file")
        try:
            with Image.open(query) as image:
                image.verify()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"--query {str(query)!r} is not an image: {error}") from error
    if output.is_dir():
        raise InputError(f"--output {str(output)!r} is a folder; name a file, like results.html")
    if output.parent.exists() and not output.parent.is_dir():
        raise InputError(f"--output {str(output)!r} lies in {str(output.parent)!r}, not a folder")


def _material(
    photos: Path | None, queries: list[Path], workspace: Path
) -> tuple[list[Path], list[DemoQuery]]:
    """Return what to index and what to search with."""
    if photos is None:
        folders, asked = samples.sample_queries(workspace / "samples")
    else:
        folders = [photos]
        asked = [] if queries else samples.own_views(photos, workspace)
    return folders, samples.own_queries(queries) if queries else asked


def _exit_on_signal(signum: int, _frame: FrameType | None) -> None:
    """Leave through every `finally`, so that no process stays."""
    sys.exit(128 + signum)


if __name__ == "__main__":
    app(prog_name="python -m demo")
