"""Running the command in this process, and photographs to run it on."""

from __future__ import annotations

import json
import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from workers.cli.app import app

PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")


def vantage(home: Path, *args: str | Path, stdin: bytes | None = None) -> Result:
    """Run ``vantage``; standard output and standard error are kept apart."""
    env = {"VANTAGE_HOME": str(home), "COLUMNS": "80"}
    given = [os.fspath(arg) for arg in args]
    return CliRunner().invoke(app, given, env=env, input=stdin)


def vantage_json(home: Path, *args: str | Path, code: int = 0) -> Any:
    """Run ``vantage ... --json``; all of standard output must be one JSON document."""
    result = vantage(home, *args, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def copy_photographs(folder: Path, names: tuple[str, ...] = PHOTOGRAPHS) -> Path:
    """Copy some of scikit-image's photographs into a new folder."""
    folder.mkdir(parents=True)
    for name in names:
        with resources.as_file(resources.files("skimage").joinpath("data", name)) as path:
            shutil.copyfile(path, folder / name)
    return folder
