"""`make demo`: everything starts, photographs are found, nothing is left running."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from heavy import long_only
from PIL import Image

skimage = pytest.importorskip("skimage", reason="the sample photographs come with scikit-image")

ROOT = Path(__file__).parents[2]


def run_demo(tmp_path, *arguments):
    """Run the demonstration with its temporary files below `tmp_path`; return the process."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("VANTAGE_")}
    env |= {"TMPDIR": str(temporary), "COLUMNS": "160", "VANTAGE_FLOWER_PORT": "0"}
    # However busy the machine is, no worker counts as dead and no answer is incomplete.
    env |= {"VANTAGE_HOST_TIMEOUT_S": "600", "VANTAGE_SEARCH_DEADLINE_S": "600"}
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--output", str(tmp_path / "results.html"), *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    left = processes_of(temporary)
    assert done.returncode == 0, done.stdout + done.stderr
    assert left == []
    assert list(temporary.glob("vantage-demo-*")) == []
    return done


def processes_of(folder):
    """Return the command lines of processes whose home lies below a folder, after some time."""
    deadline = time.monotonic() + 60
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("VANTAGE_HOME", "").startswith(str(folder)):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        if not found or time.monotonic() > deadline:
            return [" ".join(process.cmdline()) for process in found]
        psutil.wait_procs(found, timeout=max(0.0, deadline - time.monotonic()))


def test_the_demonstration_finds_its_photographs_and_leaves_nothing(tmp_path):
    done = run_demo(tmp_path)
    for plan in ("probed", "exhaustive"):
        line = re.search(rf"{plan}: (\d+) of 39 first.*ran as {plan}", done.stdout)
        assert line, done.stdout
        # Two views show almost nothing: a clock in motion, and 51 pixels of an eye.
        assert int(line[1]) >= 36
    assert re.search(r"Flower shows the tasks at http://127\.0\.0\.1:\d+", done.stdout)
    assert "Everything is shut down" in done.stdout
    html = (tmp_path / "results.html").read_text(encoding="utf-8")
    assert html.count("<section") == 39
    assert html.count(" ✓") >= 72


@long_only
def test_the_demonstration_works_with_the_users_own_photographs(tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    source = Path(skimage.__file__).parent / "data"
    for name in ("coffee.png", "chelsea.png", "rocket.jpg"):
        (photographs / name).write_bytes((source / name).read_bytes())
    (photographs / "broken.jpg").write_bytes(b"not a picture")
    with Image.open(source / "coffee.png") as picture:
        picture.rotate(20).save(tmp_path / "turned.png")
    done = run_demo(tmp_path, "--photos", str(photographs), "--query", str(tmp_path / "turned.png"))
    first = re.search(r"│ probed +│ +1 │.*│", done.stdout)
    assert first, done.stdout
    assert "coffee.png" in first[0]
    assert "coffee.png" in (tmp_path / "results.html").read_text(encoding="utf-8")
