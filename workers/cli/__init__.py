"""The command ``vantage``.

Modules are imported when a command needs them: ``vantage --help`` loads neither OpenCV nor numba
nor Celery (a test proves it).
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point of the command ``vantage``; leaves by `SystemExit`."""
    import gc
    import os

    from pipeline.cores import library_threads

    # Imported objects stay: checking them again and again takes a tenth of a short command.
    gc.set_threshold(100_000, 20, 20)
    for name, threads in library_threads().items():
        os.environ.setdefault(name, threads)
    from workers.cli.app import app

    app(prog_name="vantage")
