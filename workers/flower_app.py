"""Flower's web application, for a browser that other pages are open in too."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from base64 import b64encode
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import click
import flower.command
import flower.utils.broker
from flower.app import Flower
from redis import asyncio as aioredis
from tornado.httputil import HTTPServerRequest
from tornado.web import ErrorHandler, RequestHandler

from pipeline.config import Settings
from workers.app import watching_app
from workers.redis_url import RedisAddress

__all__ = ["GuardedFlower", "hosts_of", "install", "is_allowed", "is_login", "is_open", "run"]


def hosts_of(settings: Settings) -> frozenset[str]:
    """Return the names by which a browser may call Flower, besides IP addresses."""
    names = {"localhost", socket.gethostname(), settings.host, settings.flower_address}
    return frozenset(name.lower() for name in names)


def is_allowed(host: str, names: frozenset[str]) -> bool:
    """Tell whether a request's host is ours.

    A page of another site can have its name point to this machine; then its browser calls us by
    that name. An IP address cannot be made to point elsewhere.
    """
    if host.lower() in names:
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


class GuardedFlower(Flower):
    """Flower that answers to its own names, and shows numbers of tasks with the password only."""

    hosts: frozenset[str] = frozenset()

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Return what answers a request."""
        if not is_allowed(request.host_name, self.hosts):
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})
        if is_open(request.path):
            return super().find_handler(request, **kwargs)
        if not is_login(request.headers.get("Authorization", ""), self.options.basic_auth):
            return self.get_handler_delegate(request, _AskForLogin)
        return super().find_handler(request, **kwargs)


class _AskForLogin(RequestHandler):
    """Answers a request that has not the password, whatever its method."""

    def prepare(self) -> None:
        """Answer."""
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.finish("Access denied")


def is_open(path: str) -> bool:
    """Tell whether what lies at a path needs no password: it shows nothing of ours."""
    return path == "/healthcheck" or path.startswith("/static/")


def is_login(given: str, logins: Sequence[str]) -> bool:
    """Tell whether a header names a user and the password.

    Flower itself does not ask for it at ``/metrics``, and knows no characters but ASCII's.
    """
    known = [b64encode(login.encode()) for login in logins]
    # Tornado decodes headers so that each byte of them is one character.
    scheme, _, token = given.strip().encode("latin-1", "replace").partition(b" ")
    same = [hmac.compare_digest(token.strip(), one) for one in known]
    return scheme.lower() == b"basic" and any(same)


class _SocketBroker(flower.utils.broker.RedisSocket):
    """Lengths of queues in a Redis at a Unix socket; Flower's own knows no users."""

    def __init__(self, broker_url: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(broker_url, *args, **kwargs)
        address = RedisAddress.parse(broker_url)
        self.redis = aioredis.Redis.from_url(
            address.client_url(address.broker_db), socket_timeout=self.socket_timeout
        )


def install(settings: Settings) -> None:
    """Have Flower's command run this application."""
    GuardedFlower.hosts = hosts_of(settings)
    flower.command.Flower = GuardedFlower
    flower.utils.broker.RedisSocket = _SocketBroker


def run(arguments: Sequence[str]) -> None:
    """Run Flower's command until it is stopped.

    Celery's own command line would load every other command, too.
    """
    celery = click.Group("celery", commands={"flower": flower.command.flower})
    context = SimpleNamespace(app=watching_app, quiet=False)
    celery.main(["flower", *arguments], prog_name="celery", obj=context)
