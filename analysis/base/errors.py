"""The errors of this program that a user can mend."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input that the user can mend; scripts print it as one line and exit with 2."""

    def __init__(self, text: object) -> None:
        """Keep the text to one line of printable characters: file names and contents may hold any."""
        line = " ".join(str(text).splitlines())
        super().__init__("".join(c if c.isprintable() else "?" for c in line))


def unknown(kind: str, got: object, known: Iterable[object], where: str) -> UserError:
    """Build the one error used for every bad name: what, got, choices, where to add one."""
    return UserError(f"unknown {kind} {got!r}: choose from {', '.join(map(str, known))} (see {where})")
