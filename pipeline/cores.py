"""How many cores this process may use; ``python -m pipeline.cores`` prints it.

Fewer than the machine has: by ``taskset`` or a cpuset (the affinity), or by a container's share of
processor time (the quota of a control group, version 1 or 2).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

_PROCESS = Path("/proc/self")
_OCTAL = re.compile(r"\\([0-7]{3})")


def usable_cores() -> int:
    """Return how many cores this process may use, at least 1.

    A share of one and a half cores counts as two.
    """
    quotas = [math.ceil(quota) for quota in _quotas(_PROCESS)]
    return max(1, min([_affinity(), *quotas]))


def library_threads() -> dict[str, str]:
    """Return variables that limit the threads of libraries, which count by the affinity alone.

    Nothing if there is no smaller quota.
    """
    cores = usable_cores()
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
    return dict.fromkeys(names, str(cores)) if cores < _affinity() else {}


def _affinity() -> int:
    """Return on how many cores the kernel lets this process run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(process: Path) -> Iterator[float]:
    """Yield the limits of this process's control groups and of all above them, in cores."""
    try:
        groups = (process / "cgroup").read_text("utf-8", "surrogateescape").splitlines()
        mounts = (process / "mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, group = line.split(":", 2)
        for kind, root, place in map(_mount, mounts):
            version_2 = not controllers and kind == "cgroup2"
            if version_2 or (kind == "cgroup:cpu" and "cpu" in controllers.split(",")):
                for folder in _folders(Path(group), Path(root), Path(place)):
                    yield from _limit(folder)


def _mount(line: str) -> tuple[str, str, str]:
    """Return kind, root and mount point of a line; `cgroup:cpu` is that controller's."""
    before, _, after = line.partition(" - ")
    fields, (kind, _, options) = before.split(" "), after.split(" ", 2)
    if kind == "cgroup" and "cpu" in options.split(","):
        kind = "cgroup:cpu"
    root, place = (_OCTAL.sub(lambda m: chr(int(m[1], 8)), name) for name in fields[3:5])
    return kind, root, place


def _folders(group: Path, root: Path, place: Path) -> Iterator[Path]:
    """Yield the folders of a control group and of those above it, as far as they are mounted."""
    # In a container, the root of what is mounted may be the group itself.
    below = group.relative_to(root).parts if group.is_relative_to(root) else ()
    yield place
    for name in () if ".." in below else below:
        place /= name
        yield place


def _limit(folder: Path) -> Iterator[float]:
    """Yield the limit of one control group, if it has one."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return


if __name__ == "__main__":
    print(usable_cores())
