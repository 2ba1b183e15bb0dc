"""README and docs show what really happens: their commands and their Python are run.

Every ``console`` block is typed into bash, one ``$`` line after the other, and what is printed is
compared with what the page shows; every ``python`` block is run, and compared with the ``text``
block that follows it. Times, ports, versions and broken numbers may differ; words, names and their
order may not, nor whole numbers by more than a twentieth: with other vector instructions OpenCV's
SIFT finds some keypoints more or fewer. ``...`` stands for lines that are left out. `make figures`
has the pages show what is printed. ``sh`` blocks are recipes for other machines: only their grammar
is checked (tests/unit/test_docs_pages.py).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

skimage = pytest.importorskip("skimage", reason="the sample photographs come with scikit-image")

ROOT = Path(__file__).parents[2]
HOME_IN_DOCS = "/home/ana/.local/share/vantage"
FOLDER_IN_DOCS = "/home/ana"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_ALWAYS = ("Kernels: compiled", "Still waiting for ")
"""Begins of lines that only a first start prints, or a slow one."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the output that the page shows for it."""

    language: str
    text: str
    output: str | None

    def commands(self) -> Iterator[tuple[str, str]]:
        """Yield the commands of a ``console`` block with what each prints."""
        for entry in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, output = entry.partition("\n")
            yield command, output


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    result = []
    for i, fence in enumerate(found):
        after = found[i + 1] if i + 1 < len(found) else None
        shown = None
        if after is not None and after[1] == "text":
            between = text[fence.end() : after.start()]
            shown = after[2] if not between.strip() else None
        result.append(Block(fence[1], fence[2], shown))
    return result


FIGURE = re.compile(r"\d[\d.,]*(?<=\d)")
VOLATILE = re.compile(
    r"(?<=127\.0\.0\.1:)\d+"  # a port
    r"|\d+:\d\d min\b|\d[\d.,]* m?s\b"  # a time, however long
    r"|(?<![\d.,])\d[\d,]*(?= (?:MiB|GiB)\b)"
    r"|(?<![\d.,])(?:\d[\d,]*\.)+\d+"  # what is measured, and versions
    r"|(?<=-)[0-9a-f]{8}\b"  # a digest
)


def shape(text: str, figures: re.Pattern[str] = VOLATILE) -> str:
    """Return a text without what may differ and without the widths of its columns."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.strip().splitlines())
    return "\n".join(figures.sub("#", line) for line in lines)


def renewed(shown: str, printed: str) -> str:
    """Return what a page shows, with the figures that were printed where they must not differ."""
    new = {shape(line, FIGURE): line for line in printed.splitlines()}
    lines = []
    for line in shown.splitlines():
        now = new.get(shape(line, FIGURE), line)
        lines.append(line if agree(line, now) else now)
    return "".join(f"{line}\n" for line in lines)


COUNT = re.compile(r"(?<![\w.,#/-])\d[\d,]*(?![\w.#])")
"""A whole number that counts something: no part of a name."""


def agree(shown: str, printed: str) -> bool:
    """Tell whether a page shows what was printed."""
    lines = shape(shown).splitlines()
    pattern = "\n".join(".*" if line == "..." else _counts_of(line) for line in lines)
    match = re.fullmatch(pattern, shape(printed), re.DOTALL)
    counts = [count for line in lines if line != "..." for count in COUNT.findall(line)]
    return match is not None and all(map(_is_near, counts, match.groups()))


def _counts_of(line: str) -> str:
    """Return a pattern that takes a line's counts out."""
    return r"(\d[\d,]*)".join(map(re.escape, COUNT.split(line)))


def _is_near(shown: str, printed: str) -> bool:
    one, other = (int(text.replace(",", "")) for text in (shown, printed))
    return abs(one - other) <= max(one, other) // 20


class Terminal:
    """A shell in its own folder, with its own home and a running `vantage up`."""

    def __init__(self, folder: Path, eventually: Callable[..., Any]) -> None:
        self.folder = folder / "ana"
        self.home = folder / "vantage"
        self._eventually = eventually
        self._up: subprocess.Popen[bytes] | None = None
        packages = self.folder / ".venv" / "lib" / "python3"
        packages.mkdir(parents=True)
        (packages / "site-packages").symlink_to(Path(skimage.__file__).parent.parent)
        env = {name: value for name, value in os.environ.items() if not name.startswith("VANTAGE_")}
        self.env = env | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")]),
            "VANTAGE_HOME": str(self.home),
            "VANTAGE_HOST": "studio",
            "COLUMNS": "160",  # the paths of the tests are longer than those of the pages
            "VANTAGE_FLOWER_PORT": "0",
            # However busy the machine is, no worker counts as dead and no answer is incomplete.
            "VANTAGE_HOST_TIMEOUT_S": "600",
            "VANTAGE_SEARCH_DEADLINE_S": "600",
        }

    def differences(self, page: str) -> list[str]:
        """Run the blocks of a page; return where it does not show what happens."""
        found = []
        for block in blocks(page):
            if block.language == "console":
                for command, shown in block.commands():
                    found += self._difference(page, command, shown, self.type(command))
            elif block.language == "python":
                found += self._difference(page, block.text, block.output, self.python(block.text))
        return found

    def type(self, command: str) -> str:
        """Run a command and return what it prints."""
        if command == "vantage up":
            return self._start()
        return self._run(["bash", "-c", command])

    def python(self, code: str, cwd: Path | None = None) -> str:
        """Run a program and return what it prints."""
        return self._run([sys.executable, "-W", "error", "-c", code], cwd)

    def stop(self) -> int:
        """Press Ctrl-C where `vantage up` runs and return its exit status."""
        if self._up is None:
            return 0
        process, self._up = self._up, None
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(timeout=600)
        finally:
            process.kill()

    def _run(self, arguments: list[str], cwd: Path | None = None) -> str:
        done = subprocess.run(
            arguments,
            cwd=cwd or self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{arguments[-1]}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _start(self) -> str:
        """Start `vantage up` and return what it prints until it serves."""
        console = self.folder.parent / "up.log"
        with console.open("wb") as output:
            self._up = subprocess.Popen(
                ["vantage", "up"],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

        def serves() -> bool:
            assert self._up is not None
            text = console.read_text()
            assert self._up.poll() is None, text
            return re.search(r"^Flower: .+\n", text, re.MULTILINE) is not None

        self._eventually(serves)
        lines = console.read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith(NOT_ALWAYS))

    def _difference(self, page: str, command: str, shown: str | None, printed: str) -> list[str]:
        if shown is None or not shown.strip():
            return []  # the page does not show what comes
        printed = printed.replace(str(self.home), HOME_IN_DOCS)
        printed = printed.replace(str(self.folder), FOLDER_IN_DOCS)
        if page and os.environ.get("WRITE_FIGURES"):
            text, new = (ROOT / page).read_text(encoding="utf-8"), renewed(shown, printed)
            (ROOT / page).write_text(text.replace(shown, new, 1), encoding="utf-8")
            shown = new
        if agree(shown, printed):
            return []
        return [f"$ {command}\n--- shown\n{shown}--- printed\n{printed}"]


@pytest.fixture(scope="module")
def terminal(eventually: Callable[..., Any]) -> Iterator[Terminal]:
    # A short path: tables shorten long ones, which the pages do not show.
    with tempfile.TemporaryDirectory() as folder:
        opened = Terminal(Path(folder).resolve(), eventually)
        try:
            yield opened
        finally:
            opened.stop()


@pytest.fixture(scope="module")
def readme(terminal: Terminal) -> list[str]:
    """Follow the README; the other pages continue from its state."""
    return terminal.differences("README.md")


def test_what_the_readme_shows_happens(readme: list[str]) -> None:
    assert readme == [], "\n".join(readme)


def test_what_the_operations_page_shows_happens(terminal: Terminal, readme: list[str]) -> None:
    differences = terminal.differences("docs/operations.md")
    assert differences == [], "\n".join(differences)


def test_a_segment_can_be_read_as_the_page_on_formats_says(
    terminal: Terminal, readme: list[str]
) -> None:
    (code,) = [block.text for block in blocks("docs/formats.md") if block.language == "python"]
    segment = next((terminal.home / "store" / "groups" / "0").glob("*.npz"))
    printed = terminal.python(re.sub(r"[0-9a-f]{32}(?=\.npz)", segment.stem, code), terminal.home)
    assert printed.startswith('{"group":0}')
    assert "'codes': (" in printed


def test_ctrl_c_stops_everything(terminal: Terminal, readme: list[str]) -> None:
    assert terminal.stop() == 0
    assert (terminal.folder.parent / "up.log").read_text().endswith("Stopped.\n")


def test_a_page_that_shows_something_else_would_be_noticed(terminal: Terminal) -> None:
    shown = "1  0.492    505  /home/ana/photos/a.png\n"
    same = f"1 0.5 507 {terminal.folder}/photos/a.png\n"
    assert terminal._difference("", "vantage search", shown, same) == []
    assert terminal._difference("", "vantage search", shown, same.replace("a.png", "b.png"))
    assert terminal._difference("", "vantage search", shown, same.replace("1 0.5", "2 0.5"))
    other = same.replace("507", "470")
    assert terminal._difference("", "vantage search", shown, other)
    assert renewed(shown, other.replace(str(terminal.folder), FOLDER_IN_DOCS)).split()[2] == "470"
    longer = same + "one line more\n"
    assert terminal._difference("", "vantage search", shown, longer)
    assert terminal._difference("", "vantage search", shown + "...\n", longer) == []
