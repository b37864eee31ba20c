"""Numbers as text, with the digits that they need: what is not 0 is never printed as 0.00."""

from __future__ import annotations

import math

DIGITS = 2
_MOST = 12


def number(value: float, digits: int | None = None) -> str:
    """Return a number with two digits after the point, more if it would read as 0; a dash for NaN."""
    if math.isnan(value):
        return "-"
    if value == 0:
        return "0"
    text = f"{value:.{digits_for(value) if digits is None else digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def with_interval(value: float, low: float, high: float) -> str:
    """Return such as ``0.51 [0.20, 0.80]``, all three with the same digits; no brackets without interval.

    An interval that leaves out 0 shows on which side it lies: 0.0031 [0.0012, 0.0050].
    """
    if math.isnan(low) or math.isnan(high):
        return number(value)
    digits = digits_for(max(abs(value), abs(low), abs(high)))
    if low > 0 or high < 0:
        digits = max(digits, *(digits_for(part) - 1 for part in (value, low, high)))
    if not (value or low or high):
        return "0 [0, 0]"
    middle, *ends = (_fixed(part, digits) for part in (value, low, high))
    return f"{middle} [{', '.join(ends)}]"


def p_value(p: float) -> str:
    """Return a p or q value with three digits, ``<0.001`` below that; 0.04996 keeps what makes it < 0.05."""
    if math.isnan(p):
        return "-"
    text = f"{p:.3f}"
    return "<0.001" if p < 0.001 else f"{p:.5f}" if p < 0.05 <= float(text) else text


def digits_for(value: float) -> int:
    """Return the digits after the point that show two figures of ``value``, at least two digits."""
    if value == 0 or not math.isfinite(value):
        return DIGITS
    return min(max(DIGITS, 1 - math.floor(math.log10(abs(value)))), _MOST)


def _fixed(value: float, digits: int) -> str:
    """Return ``value`` with ``digits``, and 0 without a sign."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text
