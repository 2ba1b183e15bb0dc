"""Errors of our own decoders."""

from __future__ import annotations


class PictureError(Exception):
    """A picture cannot be decoded: a code of `FAILURE_CODES`, a sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(code, sentence)

    @property
    def code(self) -> str:
        """Machine-readable reason."""
        return str(self.args[0])

    @property
    def sentence(self) -> str:
        """Reason for users."""
        return str(self.args[1])
