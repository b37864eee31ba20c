"""Which layers ``--layer`` means."""

from __future__ import annotations

import re

from analysis.base.errors import UserError
from configs.settings import MODEL_ALIASES, SELECTED_LAYERS


def selected_layers(model: str, n_layers: int) -> tuple[int, ...]:
    """Return the layers at depths 0, 25, 50, 75 and 100 %, from the table or computed."""
    listed = SELECTED_LAYERS.get(MODEL_ALIASES.get(model, model))
    if listed is not None and listed[-1] == n_layers - 1:
        return listed
    depths = (int(q * (n_layers - 1) / 4 + 0.5) for q in range(5))
    return tuple(dict.fromkeys(depths))


def choose_layers(spec: str, model: str, n_layers: int) -> tuple[int, ...]:
    """Return the layers that ``spec`` names.

    Args:
        spec: ``all``, ``middle``, ``selected``, or numbers such as ``7`` or ``7,15``.
        model: alias or name, for the table of selected layers.
        n_layers: number of blocks.

    Raises:
        UserError: not one of these, or a layer that the model does not have.
    """
    if spec == "all":
        return tuple(range(n_layers))
    if spec == "selected":
        return selected_layers(model, n_layers)
    if spec == "middle":
        chosen = selected_layers(model, n_layers)
        return (chosen[len(chosen) // 2],)
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", spec):
        raise UserError(
            f"unknown layer {spec!r}: choose from all, middle, selected, numbers such as 7,15 (see --help)"
        )
    layers = tuple(dict.fromkeys(int(part) for part in spec.split(",")))
    if max(layers) >= n_layers:
        raise UserError(
            f"layer {max(layers)}: {model} has layers 0..{n_layers - 1} (0 is after the first block)"
        )
    return layers
