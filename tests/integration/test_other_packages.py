"""Extractors of other packages: the example of docs/extractors.md, installed, and broken ones.

A distribution is a folder on Python's path with the modules and their ``.dist-info``, as pip leaves
it behind; entry points are found there by `importlib.metadata`, in processes of their own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extractors.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


(PROJECT,) = fenced("toml")
EXAMPLE = next(block for block in fenced("python") if "class Thumbnail" in block)
EXAMPLE_TEST = next(block for block in fenced("python") if "class TestThumbnail" in block)


def install(folder: Path, project: dict[str, Any], **modules: str) -> None:
    """Put a distribution into a folder."""
    name, version = project["name"], project["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


def offer(folder: Path, package: str, name: str, value: str, **modules: str) -> None:
    """Put a distribution with one extractor into a folder."""
    points = {"vantage.extractors": {name: value}}
    install(folder, {"name": package, "version": "0.3", "entry-points": points}, **modules)


def run(site: Path, home: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("VANTAGE_")}
    env |= {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "VANTAGE_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-P", *map(str, command)],
        capture_output=True,
        text=True,
        env=env,
        cwd=home,
        timeout=600,
    )


def vantage(site: Path, home: Path, *command: str | Path, code: int = 0) -> Any:
    done = run(site, home, "-m", "workers.cli", *command, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages, with the example of the page."""
    folder = tmp_path_factory.mktemp("site")
    install(folder, tomllib.loads(PROJECT)["project"], thumbnail=EXAMPLE)
    return folder


def test_the_example_of_the_page_passes_the_suite_that_ours_pass(site: Path, home: Path) -> None:
    (home / "test_thumbnail.py").write_text(EXAMPLE_TEST)
    done = run(site, home, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_thumbnail.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout)


def test_the_suite_finds_what_is_wrong_with_an_extractor(site: Path, home: Path) -> None:
    """The example with one error at a time."""
    wrong = {
        "dimensions = 256": "dimensions = 255",
        "row_bytes = 128": "row_bytes = 100",
        "return rows / lengths": "return rows",
        "np.array([[x, y,": "np.array([[-x, y,",
        ".astype(np.float32).reshape": ".reshape",
        "image.pixels,": "image.pixels * 0,",
        "small.astype": "(small + np.random.random()).astype",
    }
    site = home / "wrong"
    site.mkdir()
    for number, (right, instead) in enumerate(wrong.items()):
        text = EXAMPLE.replace(right, instead)
        assert text != EXAMPLE
        if right.startswith(".astype"):
            text = text.replace("256)\n", "256).astype(np.float64)\n", 1)
        (site / f"wrong{number}.py").write_text(text)
        (home / f"test_wrong{number}.py").write_text(
            EXAMPLE_TEST.replace("from thumbnail", f"from wrong{number}")
        )
    quick = "says or shapes or normalized or keypoints or different or same_picture"
    done = run(site, home, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "-k", quick, home)
    failed = set(re.findall(r"^FAILED \S*test_wrong(\d)\.py", done.stdout, re.MULTILINE))
    assert failed == {str(number) for number in range(len(wrong))}, done.stdout


def test_the_example_is_listed(site: Path, home: Path) -> None:
    listed = {info["name"]: info for info in vantage(site, home, "extractors")["extractors"]}
    assert {"sift", "surf", "cnn", "thumbnail"} <= set(listed)
    assert listed["thumbnail"] == {
        "name": "thumbnail",
        "origin": "vantage-thumbnail 1.0",
        "dimensions": 256,
        "row_bytes": 128,
        "one_vector": True,
        "licence": "Apache-2.0",
        "patents": "none known",
        "usable": True,
        "reason": "",
    }


def test_the_example_indexes_and_finds(
    site: Path, home: Path, tmp_path: Path, small_photographs: dict[str, bytes]
) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name, data in small_photographs.items():
        (photographs / f"{name}.png").write_bytes(data)
    index = ("index", "tiny", photographs, "--local", "--extractor", "thumbnail")
    assert vantage(site, home, *index)["state"] == "done"
    query = photographs / "coffee.png"
    found = vantage(site, home, "search", "tiny", query, "--local", "--top", "3")
    assert found["searches"][0]["matches"][0]["locations"] == [str(query)]
    # Without the package the collection cannot be searched, and the error says so.
    bare = tmp_path / "bare"
    bare.mkdir()
    lost = vantage(bare, home, "search", "tiny", query, "--local", code=2)
    assert "no extractor is named 'thumbnail'" in json.dumps(lost)


def test_broken_packages_break_nothing_and_are_listed_with_the_reason(home: Path) -> None:
    site = home / "site"
    offer(site, "gone", "gone", "no_such_module:Make")
    offer(site, "raises", "raises", "raises_at_import:make", raises_at_import="1 / 0\n")
    offer(site, "nothing", "nothing", "no_callable:make", no_callable="make = 3\n")
    make = "def make(config, open_model):\n    return "
    offer(site, "fails", "fails", "fails_late:make", fails_late=f"{make}{{}}[1]\n")
    offer(site, "other", "other", "makes_other:make", makes_other=f"{make}3\n")
    offer(site, "oddly", "odd name", "no_callable:make")
    function = f"{make}open_model(config.model)\nmake.needs_model = True\n"
    offer(site, "filed", "filed", "filed:make", filed=f"{function}make.licence = 'MIT'\n")
    offer(site, "first", "twice", "no_callable:make")
    offer(site, "second", "twice", "no_callable:make")
    offer(site, "taker", "sift", "no_callable:make")
    listed: dict[str, list[Any]] = {}
    for info in vantage(site, home, "extractors")["extractors"]:
        listed.setdefault(info["name"], []).append(info)
    reasons = {
        "gone": "gone 0.3 is broken (ModuleNotFoundError: No module named 'no_such_module')",
        "raises": "raises 0.3 is broken (ZeroDivisionError: division by zero)",
        "nothing": "nothing 0.3 is broken (TypeError: no_callable:make cannot be called)",
        "fails": "fails 0.3 is broken (KeyError: 1)",
        "other": "(of other 0.3) made the object 3;",
        "odd name": "oddly 0.3 is broken (ValueError: an extractor's name is 1 to 32",
        "twice": "is offered by first 0.3 and second 0.3; uninstall all but one of them",
    }
    for name, reason in reasons.items():
        (info,) = listed[name]
        assert info["usable"] is False
        assert reason in info["reason"]
    (filed,) = listed["filed"]
    assert (filed["usable"], filed["reason"]) == (True, "needs a model: filed:FILE")
    assert (filed["licence"], filed["origin"]) == ("MIT", "filed 0.3")
    # A model is hashed, its options are read, the factory is called, and here found wrong.
    (home / "model.bin").write_bytes(b"model")
    (home / "model.toml").write_text("a = 1\n")
    (made,) = vantage(site, home, "extractors", "filed:model.bin", code=1)["extractors"]
    assert "(of filed 0.3) made the object PosixPath(" in made["reason"]
    (home / "model.toml").write_text("a = \n")
    wrong = vantage(site, home, "extractors", "filed:model.bin", code=2)["error"]["message"]
    assert "model.toml': cannot be read as TOML" in wrong
    ours, theirs = sorted(listed["sift"], key=lambda info: not info["usable"])
    assert (ours["usable"], ours["dimensions"], theirs["usable"]) == (True, 128, False)
    assert "Vantage has an extractor of this name" in theirs["reason"]
    # Everything else works, and using a broken one raises an error.
    assert run(site, home, "-m", "workers.doctor", "--warm").returncode == 0
    assert vantage(site, home, "collections")["collections"] == []
    asked = vantage(site, home, "extractors", "raises", code=2)
    assert reasons["raises"] in asked["error"]["message"]
    table = run(site, home, "-m", "workers.cli", "extractors")
    assert "raises: extractor is 'raises': cannot be used" in table.stdout
