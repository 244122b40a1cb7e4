"""Errors that are the user's to fix: the command line prints them without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something outside the program is wrong; the message names it and the remedy.

    Args:
        message: what is wrong, with the file or key it is about.
        fix: what to do about it, as an instruction.
    """

    def __init__(self, message: str, fix: str | None = None):
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.fix}" if self.fix else self.message


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names closest to `name` as a phrase: "a, b or c"; empty without candidates."""
    close = get_close_matches(name, list(known), n=count, cutoff=0.4)
    if not close:
        return ""
    return close[0] if len(close) == 1 else ", ".join(close[:-1]) + " or " + close[-1]
