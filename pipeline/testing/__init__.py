"""Suites that other packages run over what they add to Vantage; they need pytest."""

from __future__ import annotations

import pytest

# Before the suites are imported, so that a failed assert says what it compared.
pytest.register_assert_rewrite("pipeline.testing.extractors")
