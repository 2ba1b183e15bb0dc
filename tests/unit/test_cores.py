"""Cores are those that this process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cores
from pipeline.config import Settings
from pipeline.cores import library_threads, usable_cores
from pipeline.decoders.pool import DecoderPool
from pipeline.index.engine import _threads
from pipeline.local import LocalDriver
from workers.up import read_procfile

VERSION_2 = "0::{group}\n"
VERSION_1 = "5:memory:/x\n4:cpu,cpuacct:{group}\n1:name=systemd:/y\n0::/z\n"


class Machine:
    """The control groups of a machine, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = folder / "self"
        self.process.mkdir()
        self.mounts = [f"20 1 0:1 / {folder} rw - ext4 /dev/sda rw"]
        self.write()

    def write(self, groups: str = "") -> None:
        (self.process / "cgroup").write_text(groups)
        (self.process / "mountinfo").write_text("\n".join(self.mounts) + "\n")

    def mount(self, place: str, kind: str, options: str = "rw", root: str = "/") -> None:
        shown = str(self.folder / place).replace(" ", "\\040")
        self.mounts.append(f"31 20 0:9 {root} {shown} rw,nosuid shared:7 - {kind} none {options}")

    def limit(self, group: str, **files: str) -> None:
        folder = self.folder / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(cores, "_PROCESS", made.process)
    monkeypatch.setattr(cores, "_affinity", lambda: 16)
    return made


def test_without_limits_it_is_the_affinity(machine: Machine) -> None:
    assert usable_cores() == 16
    assert library_threads() == {}
    for path in machine.process.iterdir():
        path.unlink()
    assert usable_cores() == 16


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [("max 100000", 16), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1),
     ("6400000 100000", 16), ("", 16), ("rubbish", 16), ("1 0", 16)],
)  # fmt: skip
def test_a_share_of_version_2(machine: Machine, limit: str, wanted: int) -> None:
    machine.mount("cgroup v2", "cgroup2")
    machine.write(VERSION_2.format(group="/slice/unit"))
    machine.limit("cgroup v2/slice/unit", cpu__max=limit)
    assert usable_cores() == wanted


def test_the_smallest_share_of_all_groups_above_counts(machine: Machine) -> None:
    machine.mount("cg", "cgroup2")
    machine.write(VERSION_2.format(group="/a/b/c"))
    machine.limit("cg/a/b/c", cpu__max="900000 100000")
    machine.limit("cg/a", cpu__max="300000 100000")
    machine.limit("cg/other", cpu__max="100000 100000")
    assert usable_cores() == 3
    assert set(library_threads().values()) == {"3"}


@pytest.mark.parametrize("group", ["/docker/1", "/", "/../outside", "/elsewhere"])
def test_a_container_sees_its_own_group_at_the_mount_point(machine: Machine, group: str) -> None:
    root = "/docker/1" if group == "/docker/1" else "/"
    machine.mount("cg", "cgroup2", root=root)
    machine.write(VERSION_2.format(group=group))
    machine.limit("cg", cpu__max="50000 20000")
    assert usable_cores() == 3


@pytest.mark.parametrize(("quota", "wanted"), [("-1", 16), ("250000", 3)])
def test_a_share_of_version_1(machine: Machine, quota: str, wanted: int) -> None:
    machine.mount("memory", "cgroup", "rw,memory")
    machine.mount("cpu", "cgroup", "rw,cpu,cpuacct")
    machine.write(VERSION_1.format(group="/docker/1"))
    machine.limit("cpu/docker/1", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    machine.limit("memory/x", cpu__max="100000 100000")
    assert usable_cores() == wanted


def test_everything_that_counts_cores_counts_these(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.mount("cg", "cgroup2")
    machine.write(VERSION_2.format(group="/"))
    machine.limit("cg", cpu__max="300000 100000")
    settings = Settings.from_env({"VANTAGE_HOME": str(tmp_path / "home")})
    assert (settings.extract_processes, settings.group_threads) == (3, 3)
    driver = LocalDriver(settings)
    assert driver.resources.settings.group_threads == 3
    driver.close()
    assert _threads(None) == 3
    assert DecoderPool()._slots._initial_value == 3  # type: ignore[attr-defined]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_process_tied_to_one_core_has_one() -> None:
    one = min(os.sched_getaffinity(0))
    script = f"import os; os.sched_setaffinity(0, [{one}])"
    script += "; from pipeline.cores import usable_cores; print(usable_cores())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
    printed = [sys.executable, "-m", "pipeline.cores"]
    done = subprocess.run(printed, capture_output=True, text=True, check=True)
    assert int(done.stdout) == usable_cores()


def test_the_procfile_counts_the_same_way() -> None:
    assert not any("nproc" in line for line in read_procfile().values())
    assert sum("pipeline.cores" in line for line in read_procfile().values()) == 2
