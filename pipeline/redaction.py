"""Secrets are never shown: addresses without them, and texts in which they are replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["HIDDEN", "redacted", "secrets_of", "secrets_of_environment", "without_secrets"]

HIDDEN = "***"

_SHOWN_OPTIONS = frozenset({"db", "virtual_host", "master_name", "ssl_cert_reqs", "sslmode"})
_HOST = re.compile(r"(?:[\w.-]*|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?(?:,[\w.:-]+)*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_SEPARATORS = re.compile(r"(;|::(?=[A-Za-z][A-Za-z0-9+.-]*(?:://|::)))")
_OPTION = re.compile(r"[?&;](?:[\w-]*(?:pass|pw|secret|token|key)[\w-]*)=([^&;#]*)", re.IGNORECASE)
_NUMBERED = ("redis", "rediss", "sentinel")
_NUMBER = re.compile(r"/?\d{0,6}/?")
_SHORTEST = 3
_PATHS = ("VANTAGE_HOME", "VANTAGE_LOCAL", "VANTAGE_IMAGE_ROOTS", "VANTAGE_EXTRACTOR")
"""Variables with paths: what is before an ``@`` in ``/home/ana@example.com`` is no secret."""


def without_secrets(url: str) -> str:
    """Return an address, or several joined by ``;`` or ``::``, fit for logs and error messages.

    Only what is known to be no secret is shown: scheme, host, port, path, and some options. Of a
    text that is no address, nothing is.
    """
    parts = _SEPARATORS.split(url)
    last = len(parts) - 1
    return "".join(
        part if place % 2 or (place < last and _SCHEME.fullmatch(part)) else _shown(part)
        for place, part in enumerate(parts)
    )


def _shown(url: str) -> str:
    """Return one address without its secrets."""
    scheme, colon, rest = url.partition("://")
    if not colon or not _SCHEME.fullmatch(scheme):
        return HIDDEN
    try:
        parts = urlsplit(f"x://{rest}")  # every scheme is read in the same way
    except ValueError:
        return f"{scheme}://{HIDDEN}"
    _, at, place = parts.netloc.rpartition("@")
    if not _HOST.fullmatch(place) or "@" in parts.path + parts.query + parts.fragment:
        return f"{scheme}://{HIDDEN}"  # a password that is not encoded ends up there
    path = parts.path
    if scheme in _NUMBERED and not _NUMBER.fullmatch(path):
        path = f"/{HIDDEN}"
    options = [f"{k}={v}" for k, v in parse_qsl(parts.query) if k in _SHOWN_OPTIONS]
    query = f"?{'&'.join(options)}" if options else ""
    return f"{scheme}://{HIDDEN if at else ''}{at}{place}{path}{query}"


def secrets_of(url: str) -> set[str]:
    """Return what may be a secret in an address, or in a text that should have been one."""
    found: set[str] = set()
    for part in _SEPARATORS.split(url):
        before, at, _ = part.rpartition("@")
        scheme, _, login = before.rpartition("://") if "://" in before else ("", "", before)
        found.add(login.partition(":")[2])
        if at and not scheme:  # no address: whatever is before the host
            found.add(login.rpartition(":")[2])
    found |= set(_OPTION.findall(url))
    found |= {unquote(secret) for secret in found}
    return {secret for secret in found if len(secret) >= _SHORTEST}


def secrets_of_environment(environ: Mapping[str, str]) -> set[str]:
    """Return what may be a secret in the ``VANTAGE_*`` variables, misspelt ones too."""
    found: set[str] = set()
    for name, value in environ.items():
        if name.startswith("VANTAGE_"):
            if not _is_path(name, value):
                found |= secrets_of(value)
            if "PASSWORD" in name and len(value) >= _SHORTEST:
                found.add(value)
    return found


def _is_path(name: str, value: str) -> bool:
    """Tell whether a variable holds paths; a store may be an address, written wrongly too."""
    if name == "VANTAGE_STORE":
        return value.startswith("/") and ":" not in value
    return name in _PATHS and "://" not in value


def redacted(text: str, secrets: set[str]) -> str:
    """Return a text in which every secret is replaced, the longest ones first."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text
