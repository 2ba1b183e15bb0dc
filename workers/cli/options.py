"""Options that several commands share, and what the shell completes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from pipeline.config import Settings
from pipeline.errors import VantageError


def epilog(examples: str, text: str = "") -> str:
    """Return the end of a command's help: one example a line, then a paragraph."""
    lines = "\n".join(f"  $ {line}" for line in examples.strip().splitlines())
    # Lines after \b are left as they are.
    return f"\b\nExamples:\n{lines}\n\n{' '.join(text.split())}".rstrip()


class Plan(StrEnum):
    """Plans of a search."""

    auto = "auto"
    probed = "probed"
    exhaustive = "exhaustive"


def complete_collection(incomplete: str) -> list[str]:
    """Return the collections whose names begin like this; none if they cannot be read."""
    from pipeline.status import collection_names

    try:
        names = collection_names(Settings.from_env())
    except VantageError:
        return []
    return [name for name in names if name.startswith(incomplete)]


CollectionArgument = Annotated[
    str,
    typer.Argument(
        metavar="COLLECTION",
        help="Name of the collection.",
        autocompletion=complete_collection,
        show_default=False,
    ),
]


def one_collection(text: str) -> Any:
    """Return the optional argument of a command about all collections, or one; with this help."""
    return typer.Argument(
        metavar="[COLLECTION]",
        help=text,
        autocompletion=complete_collection,
        show_default=False,
    )


ExtractorOption = Annotated[
    str | None,
    typer.Option(
        "--extractor",
        metavar="NAME",
        help="sift, surf, cnn:FILE or another of `vantage extractors`; for a new collection. "
        "Default: VANTAGE_EXTRACTOR.",
        show_default=False,
    ),
]
NewExtractorOption = Annotated[
    str | None,
    typer.Option(
        "--extractor",
        metavar="NAME",
        help="sift, surf, cnn:FILE or another of `vantage extractors`: extract all images with it. "
        "Default: the collection's own, with the features that there are.",
        show_default=False,
    ),
]
PlanOption = Annotated[
    Plan,
    typer.Option(
        help="exhaustive compares all descriptors; probed only those of the nearest cells; "
        "auto takes exhaustive if it is fast enough."
    ),
]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="Compare with all descriptors: --plan exhaustive.")
]
EffortOption = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Share of the cells that the probed plan opens for a query descriptor, above 0 and "
        "at most 1; asks for that plan. Default: the square root of the number of cells.",
        show_default=False,
    ),
]
DeadlineOption = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        metavar="SECONDS",
        help="Answer after so many seconds with what was found by then; each pass over the index "
        "has them. Default: VANTAGE_SEARCH_DEADLINE_S.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on standard output, nothing else there."),
]
LocalOption = Annotated[
    bool, typer.Option("--local", help="Work in this process: no Redis, no workers.")
]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Leave the job to the workers and return at once.")
]
