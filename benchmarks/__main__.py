"""Run the system's benchmarks one after the other: ``python -m benchmarks [--photos FOLDER]``."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "benchmarks.surf",
    "benchmarks.extraction",
    "benchmarks.chords",
    "benchmarks.search",
    "benchmarks.build",
)

if __name__ == "__main__":
    for module in MODULES:
        print(f"\n$ python -m {module} {' '.join(sys.argv[1:])}", flush=True)
        status = subprocess.call([sys.executable, "-m", module, *sys.argv[1:]])
        if status:
            sys.exit(status)
