"""Heavy tests: a small fixed sample in `make test`, all examples in `make test-long`."""

from __future__ import annotations

import os

import pytest

LONG = bool(os.environ.get("TEST_LONG"))

long_only = pytest.mark.skipif(not LONG, reason="a case of many: make test-long runs them all")


def examples(count: int) -> int:
    """Return how many examples of a property are tried where `count` would be usual."""
    return 10 * count if LONG else max(10, count // 4)
