"""The built wheel, in a separate environment, from another directory.

The long run installs all that the wheel asks for, with every version of Python that is found on the
machine; the short one takes the packages of the
environment that runs the tests, and the kernels that are compiled for it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from heavy import LONG, long_only

skimage = pytest.importorskip("skimage", reason="the sample photographs come with scikit-image")

ROOT = Path(__file__).parents[2]
VERSIONS = {"3.11", "3.12", "3.13", "3.14"}
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
PHOTOGRAPHS = ("coffee.png", "chelsea.png", "rocket.jpg", "astronaut.png")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    (built,) = folder.glob("*.whl")
    return built


def interpreter(version):
    """Return a Python of a version: that of these tests, one on PATH, or one of pyenv's."""
    if version == OWN:
        return sys.executable
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    candidates = [shutil.which(f"python{version}"), *map(str, reversed(pyenv))]
    return next(filter(starts, filter(None, candidates)), None)


def starts(program):
    """Tell whether a program starts; a shim of pyenv on PATH may stand for no version."""
    return subprocess.run([program, "-V"], check=False, capture_output=True).returncode == 0


@pytest.fixture(scope="module", params=[OWN, *sorted(VERSIONS - {OWN})] if LONG else [OWN])
def vantage(request, wheel, tmp_path_factory):
    """Install the wheel; returns a function that starts its command in another directory."""
    chosen = interpreter(request.param)
    if chosen is None:
        pytest.skip(f"there is no Python {request.param} on this machine")
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run(
        [chosen, "-m", "venv", "--without-pip", folder / "venv"], check=True, timeout=600
    )
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", wheel]
    if LONG:
        subprocess.run(install, check=True, timeout=600)
        # What `make` does on machines without libGL: the environment of these tests has it done.
        subprocess.run([python, "-m", "workers.doctor", "--repair-opencv"], check=True, timeout=600)
    else:
        subprocess.run([*install, "--no-deps"], check=True, timeout=600)
        share_packages(folder / "venv")
    env = {name: value for name, value in os.environ.items() if not name.startswith("VANTAGE_")}
    env |= {"VANTAGE_HOME": str(folder / "home"), "VANTAGE_FLOWER_PORT": "0"}
    # However busy the machine is, no worker counts as dead and no answer is incomplete.
    env |= {"VANTAGE_HOST_TIMEOUT_S": "600", "VANTAGE_SEARCH_DEADLINE_S": "600"}
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()

    def start(*arguments, program="vantage"):
        return subprocess.Popen(
            [folder / "venv" / "bin" / program, *arguments],
            cwd=elsewhere,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


def share_packages(environment):
    """Let an environment see the packages of this one, and take over its compiled kernels."""
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = packages / "pipeline" / "__pycache__"
    folder.mkdir(exist_ok=True)
    for compiled in (ROOT / "pipeline" / "__pycache__").glob("*.loop"):
        shutil.copy2(compiled, folder)


def run(process):
    """Wait for a command; return what it printed as JSON."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return json.loads(out)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name in PHOTOGRAPHS:
        (folder / name).write_bytes((Path(skimage.__file__).parent / "data" / name).read_bytes())
    return folder


def test_the_wheel_holds_all_that_runs_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"workers/Procfile", "migrations/env.py"} <= set(names)
    # Celery reads a module of this name for every app: it is the user's to have.
    assert "celeryconfig.py" not in names
    assert any(name.startswith("migrations/versions/0001") for name in names)
    assert "pipeline/templates/results.html" in names
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "demo/", "docs/"))]


def test_the_installed_command_indexes_and_searches_without_broker(vantage, photographs):
    run(vantage("index", "pictures", str(photographs), "--local", "--json"))
    query = str(photographs / "coffee.png")
    found = run(vantage("search", "pictures", query, "--local", "--json"))
    assert json.dumps(found).count("coffee.png") >= 1
    assert first_match(found)["locations"] == [query]


def test_celerys_own_settings_and_command_work_where_the_wheel_is_installed(vantage):
    code = "import celery, json; print(json.dumps(celery.current_app.conf.task_default_queue))"
    assert run(vantage("-c", code, program="python")) == "celery"
    report = vantage("-m", "celery", "-A", "workers.app", "report", program="python")
    out, err = report.communicate(timeout=600)
    assert report.returncode == 0, out + err
    assert "no-queue-was-given" in out


@long_only
def test_the_installed_command_runs_everything_and_stops_on_ctrl_c(
    vantage, photographs, eventually
):
    up = vantage("up")
    try:

        def ready():
            assert up.poll() is None, up.communicate()
            status = run(vantage("status", "--json"))
            ready = [worker for worker in status["workers"] if worker["state"] == "ready"]
            roles = {role for worker in ready for role in worker["roles"]}
            return {"extract", "group", "reduce", "query", "supervise"} <= roles

        eventually(ready)
        run(vantage("index", "served", str(photographs), "--json"))
        query = str(photographs / "rocket.jpg")
        assert first_match(run(vantage("search", "served", query, "--json")))["locations"] == [
            query
        ]
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=600)
        assert up.returncode in (0, 130)
    finally:
        if up.poll() is None:
            up.kill()
            up.communicate()


def first_match(answer):
    """Return the first match of a search's JSON, of one query or of several."""
    searches = answer.get("searches", [answer])
    return searches[0]["matches"][0]
