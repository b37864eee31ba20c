"""How axes are called: the one place that knows the families of axes, their order, and which are controls.

To add a family: an entry of FAMILIES here, and its fit in analysis/classifiers.py.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

LR, MEANDIFF, ENSEMBLE = "lr", "meandiff", "lr_ensemble"
"""Families of a single axis, which has the same name."""
PC, SHUFFLED, RANDOM = "pc", "lr_shuffled", "random"
"""Families of numbered axes: ``pc1``, ``lr_shuffled0``, ``random0``."""
IMPORTED = "imported"
"""The family of whatever has another name: axes from elsewhere, see analysis/axes/imported.py."""


@dataclass(frozen=True)
class Family:
    """Axes that are made in one way."""

    what: str
    """In a few words, for help and documents."""
    first: int | None = None
    """Number of the first axis; None for a family of a single axis."""
    control: bool = False
    """Shows what is found without a real axis."""
    judged: bool = True
    """Has a side for each class, so that its accuracy is recorded."""


FAMILIES: dict[str, Family] = {
    LR: Family("logistic regression, points to label 1"),
    MEANDIFF: Family("mean of label 1 minus mean of label 0"),
    PC: Family("principal component; its sign is arbitrary but reproducible", first=1, judged=False),
    ENSEMBLE: Family("mean of all layers' lr scores; has no direction"),
    SHUFFLED: Family("logistic regression on permuted labels, the control for overfitting", 0, control=True),
    RANDOM: Family("isotropic random direction", 0, control=True),
}
"""In the order of tables and figures, which imported axes end."""
_OTHER = Family("axis from elsewhere")
_DIGITS = 9
"""Most digits of a number: names may come from files."""


def numbered(family: str, number: int) -> str:
    """Return the name of an axis of a numbered family, such as ``random0``."""
    return f"{family}{number}"


def pc(k: int) -> str:
    """Return the name of the k-th principal component, from 1."""
    return numbered(PC, k)


SHOWN_PCS = (1, 2, 4, 8, 32, 128, 512)
"""The paper's principal components: figures show these, besides those that were targeted."""
PAPER_AXES = (LR, *map(pc, SHOWN_PCS))


def split_name(name: str) -> tuple[str, int]:
    """Return the family of an axis and its number, 0 where it has none."""
    stem = name.rstrip(string.digits)
    family, digits = FAMILIES.get(stem), name[len(stem) :]
    if family is None or bool(digits) != (family.first is not None) or len(digits) > _DIGITS:
        return IMPORTED, 0
    return stem, int(digits or 0)


def family_of(name: str) -> Family:
    """Return what is known of the axes of this one's family."""
    return FAMILIES.get(split_name(name)[0], _OTHER)


def pc_number(name: str) -> int | None:
    """Return k of ``pc<k>``, None if the axis is no principal component."""
    family, number = split_name(name)
    return number if family == PC else None


def axis_order(name: str) -> tuple[int, int, str]:
    """Return the key that sorts axes: by family, then by number; imported ones last, by name."""
    family, number = split_name(name)
    rank = list(FAMILIES).index(family) if family in FAMILIES else len(FAMILIES)
    return rank, number, name


def examples() -> list[str]:
    """Return the first name of every family, for help and errors: lr, meandiff, pc1, ..."""
    return [name if f.first is None else numbered(name, f.first) for name, f in FAMILIES.items()]
