"""Flower, Celery's dashboard: ``python -m workers.dashboard``.

Read-only, on the loopback address unless told otherwise, for the user ``vantage`` with
``VANTAGE_FLOWER_PASSWORD``, or with a new password at each start. Address and password are written
to ``home/run/flower.json``, readable by this user only.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path

import psutil

from pipeline.config import Settings
from pipeline.errors import ConfigError
from workers.processes import EXIT_CONFIG, free_port, run_dir, write_private
from workers.up_watch import UpWatch

__all__ = ["check_flower_settings", "choose_port", "flower_file", "main", "why_taken"]

_LISTEN_S = 60.0
USER = "vantage"
"""User of the dashboard."""


def flower_file(home: Path) -> Path:
    """Return the file that holds url, user, password and pid while Flower listens."""
    return home / "run" / "flower.json"


def is_loopback(address: str) -> bool:
    """Tell whether only this machine can reach an address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def check_flower_settings(settings: Settings) -> None:
    """Refuse to show task arguments (file names) to a network without a password.

    Raises
    ------
    ConfigError
        The address is not loopback and there is no password, or the password is not ASCII.
    """
    if not (settings.flower_password or "").isascii():
        raise ConfigError("VANTAGE_FLOWER_PASSWORD", "***", "Flower takes ASCII characters only")
    if not is_loopback(settings.flower_address) and not settings.flower_password:
        raise ConfigError(
            "VANTAGE_FLOWER_ADDRESS",
            settings.flower_address,
            "other machines can reach this address, so VANTAGE_FLOWER_PASSWORD must be set",
        )


def choose_port(settings: Settings) -> int:
    """Return the port to listen at: the one in the settings, or a free one if it is in use."""
    wanted, address = settings.flower_port, settings.flower_address
    reason = why_taken(address, wanted) if wanted else None
    if wanted and reason is None:
        return wanted
    port = free_port(address)
    if wanted:
        print(f"port {wanted} at {address}: {reason}; Flower takes {port}", flush=True)
    return port


def why_taken(address: str, port: int) -> str | None:
    """Return why this process could not listen there; None if it could."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def main() -> None:
    """Run Flower until it is stopped."""
    try:
        settings = Settings.from_env()
        check_flower_settings(settings)
    except ConfigError as error:
        print(f"ConfigError: {error}", file=sys.stderr)
        raise SystemExit(EXIT_CONFIG) from None
    if not settings.flower_password:
        settings = dataclasses.replace(settings, flower_password=secrets.token_urlsafe(18))
    UpWatch().start_thread()
    port = choose_port(settings)
    _configure(settings)
    threading.Thread(target=_announce, args=(settings, port), daemon=True).start()
    arguments = [f"--address={settings.flower_address}", f"--port={port}"]

    from workers import flower_app

    flower_app.install(settings)
    try:
        flower_app.run(arguments)
    finally:
        flower_file(settings.home).unlink(missing_ok=True)


def _configure(settings: Settings) -> None:
    """Set Flower's options in this process, so that no password is in arguments or environment."""
    import flower.options  # noqa: F401  (defines the options)
    from tornado.options import options

    options.read_only = True  # read-only, no "terminate this task" buttons
    options.max_tasks = 20_000  # bounds its memory
    options.natural_time = True
    options.tasks_columns = "name,uuid,state,args,kwargs,received,started,runtime,worker"
    options.conf = os.devnull  # no flowerconfig.py of the working directory
    os.environ.pop("FLOWER_UNAUTHENTICATED_API", None)
    options.basic_auth = [f"{USER}:{settings.flower_password}"]


def _announce(settings: Settings, port: int) -> None:
    """Write the address to the file once this process listens there."""
    deadline = time.monotonic() + _LISTEN_S
    while not _listens(port):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    shown = settings.flower_address
    shown = f"[{shown}]" if ":" in shown else shown
    run_dir(settings.home)
    record = {
        "url": f"http://{shown}:{port}",
        "user": USER,
        "password": settings.flower_password,
        "pid": os.getpid(),
    }
    write_private(flower_file(settings.home), json.dumps(record))


def _listens(port: int) -> bool:
    """Tell whether a socket of this process listens at a port."""
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in psutil.Process().net_connections(kind="tcp")
    )


if __name__ == "__main__":
    main()
