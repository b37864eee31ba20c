"""What all stages share that read prompts with the engine: bars over tokens, and prompts that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

from analysis.base.errors import UserError
from analysis.base.progress import bar
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.request import Counters, Reading, Request


def read_counted(
    tree: PrefixTree, requests: Sequence[Request], layers: Sequence[int], answers: Sequence[int] = ()
) -> tuple[list[Reading], dict[str, int]]:
    """Run the engine with a bar over tokens; return the readings and the tokens forwarded."""
    before = Counters(**asdict(tree.total))
    with bar(unit="token", unit_scale=True, leave=False) as shown:
        readings = tree.read(requests, layers, answers, shown.update, partial(setattr, shown, "total"))
    after = asdict(tree.total)
    return readings, {name: after[name] - count for name, count in asdict(before).items()}


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest n in 0..most with ``fits(n)``, -1 if none; ``fits`` is monotonic."""
    low, high = -1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def check_fits(lengths: Sequence[Callable[[int], int]], most: int, limit: int | None) -> None:
    """Raise UserError if a prompt with ``most`` examples is longer than the model's context.

    Args:
        lengths: per experiment, the tokens of the longest prompt with n examples.
        most: examples wanted.
        limit: the model's context in tokens, None if unknown.
    """
    longest = max((length(most) for length in lengths), default=0)
    if limit is None or longest <= limit:
        return

    def fitting(length: Callable[[int], int]) -> int:
        return largest_that_fits(lambda n: length(n) <= limit, most)

    fits = min(map(fitting, lengths))
    advice = (
        f"at most {fits} examples fit (set --n_train, or shots / report_examples with --config)"
        if fits > 0
        else "not even one example fits"
    )
    raise UserError(
        f"the longest prompt needs {longest} tokens, but the model's context has {limit}: {advice}; or take "
        "a model with a longer context"
    )
