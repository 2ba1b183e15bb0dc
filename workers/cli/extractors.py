"""``vantage extractors``."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli import exits
from workers.cli.options import JsonOption, epilog
from workers.cli.output import say, show_table, write_json

EXTRACTORS_HELP = epilog(
    """
vantage extractors
vantage extractors cnn:resnet50.onnx
vantage extractors --json
""",
    """
An extractor turns a photograph into descriptors. `vantage index --extractor` chooses one for a new
collection. The notes on patents and licences are not legal advice.
""",
)


def extractors(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Only these; NAME:FILE checks a model file.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the extractors, with their licences and what is known of patents."""
    from pipeline.extraction.listing import list_extractors

    found = list_extractors(names or [])
    if as_json:
        write_json({"extractors": [info.to_dict() for info in found]})
    else:
        show_table(
            ["extractor", "dimensions", "row bytes", "descriptors", "usable", "licence"],
            [
                [
                    info.name,
                    info.dimensions or "-",
                    info.row_bytes or "-",
                    {None: "-", True: "one", False: "many"}[info.one_vector],
                    "yes" if info.usable else "no",
                    info.licence or "-",
                ]
                for info in found
            ],
            numbers=["dimensions", "row bytes"],
        )
        say()
        for info in found:
            for line in filter(None, [info.reason, info.patents and f"patents: {info.patents}"]):
                say(f"{info.name}: {line}")
    if names and not all(info.usable for info in found):
        raise typer.Exit(exits.TROUBLE)
