"""Test suites for packages that extend Vantage; they need pytest."""

from __future__ import annotations

import pytest

# Before the suites are imported, so that a failed assert says what it compared.
pytest.register_assert_rewrite("pipeline.testing.extractors")
