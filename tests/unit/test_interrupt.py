"""An interrupt of `vantage up` at a moment when Python ignores exceptions."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from workers.up import _Interrupt


class _Destroyed:
    def __init__(self, work: str) -> None:
        self._work = work

    def __del__(self) -> None:
        if self._work == "interrupt":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise ValueError(self._work)


def test_an_interrupt_in_a_destructor_is_remembered_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    interrupt = _Interrupt()
    with interrupt:
        del_me = _Destroyed("interrupt")
        del del_me
    assert interrupt.came
    assert capfd.readouterr().err == ""


def test_other_errors_of_destructors_are_shown_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: shown.append(str(what.exc_value)))
    with _Interrupt():
        del_me = _Destroyed("else")
        del del_me
    assert shown == ["else"]
