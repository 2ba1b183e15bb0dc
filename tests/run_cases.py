"""Run the ``cmd.sh`` of every folder in a folder of cases, each with VANTAGE set: PASS or FAIL.

A case that ends with status 77 cannot be tried here and says why. ``make cases CASES=DIR``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

CANNOT = 77


def run_case(script: Path, vantage: Path) -> tuple[str, str]:
    """Run one case; return PASS, FAIL or SKIP, and what it said last."""
    done = subprocess.run(
        ["sh", str(script)],
        cwd=script.parent,
        env={**os.environ, "VANTAGE": str(vantage)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    said = [line for line in lines if line not in ("PASS", "FAIL")]
    if done.returncode == CANNOT:
        return "SKIP", said[-1] if said else ""
    verdict = "PASS" if done.returncode == 0 and "PASS" in lines else "FAIL"
    return verdict, said[-1] if said else ""


def main() -> None:
    """Print a line for every case; end with 1 where one fails."""
    folder, vantage = (Path(argument).resolve() for argument in sys.argv[1:3])
    scripts = sorted(folder.glob("*/cmd.sh"))
    if not scripts:
        sys.exit(f"no case lies in {folder}: name a folder with */cmd.sh, make cases CASES=DIR")
    failed = 0
    for script in scripts:
        began = time.monotonic()
        verdict, said = run_case(script, vantage)
        failed += verdict == "FAIL"
        took = time.monotonic() - began
        print(f"{verdict}  {script.parent.name:<32} {took:5.0f} s  {said[:80]}", flush=True)
    print(f"{len(scripts) - failed} of {len(scripts)} did not fail")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
