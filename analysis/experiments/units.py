"""The loop over units of work: which are left, who does them, and what they record."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from analysis.base.errors import UserError
from analysis.base.progress import bar
from analysis.base.seeds import fingerprint
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.request import Counters, Reading, Request
from analysis.experiments.ahead import Ahead
from analysis.experiments.study import Study, log
from analysis.results.claims import claim, describe, lock_file
from analysis.results.store import Stamp, Store, UnitKey, finished, stamp, still_needed, write
from configs.settings import as_plain

Work = Callable[[UnitKey], dict[str, Any]]


def unit_identity(study: Study, key: UnitKey, names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Return what a unit depends on: the preparation, the prompts, and the settings ``names``."""
    plain = as_plain(study.settings)
    imported = study.imported(key.layer, key.axis)
    return {
        **({"imported": imported} if imported else {}),
        "preparation": fingerprint(dict(study.identity)),
        "prompts": fingerprint(asdict(study.prompts)),
        "axis": key.axis,
        "layer": key.layer,
        "exp": key.exp,
        "levels": key.levels,
        **{name: plain[name] for name in names},
        **more,
    }


def unit_keys(
    kind: str, study: Study, axes: Iterable[str], layers: Iterable[int], exps: Iterable[int]
) -> list[UnitKey]:
    """Return all units of a grid, after checking that each axis and its levels exist at each layer.

    Raises:
        UserError: an axis is not there, or all trial sentences are on one side of its threshold.
    """
    axes, layers, exps, levels = list(axes), list(layers), list(exps), study.settings.levels
    for layer, axis, n in itertools.product(layers, axes, levels):
        _check_both_sides(study.labels(layer, axis, n)[study.trial_rows] >= n / 2, axis, layer)
    grid = itertools.product(levels, layers, axes, exps)
    return [UnitKey(kind, axis, layer, exp, n) for n, layer, axis, exp in grid]


def _check_both_sides(upper: np.ndarray, axis: str, layer: int) -> None:
    if upper.all() or not upper.any():
        raise UserError(
            f"all {len(upper)} trial sentences are on one side of the threshold of axis {axis!r}, layer "
            f"{layer}: there is nothing to tell apart; take another axis, threshold: median, or more trial "
            "sentences (n_trial), with --config"
        )


def unfinished(
    store: Store, keys: Iterable[UnitKey], identity: Callable[[UnitKey], dict[str, Any]], overwrite: bool
) -> dict[UnitKey, Stamp | None]:
    """Return the units to do and the stamps of their files; one made with other settings is an error."""
    paths = {key: store.unit(key) for key in keys}
    stamps = {key: stamp(path) for key, path in paths.items()}
    return {key: stamps[key] for key in paths if not finished(paths[key], identity(key), overwrite)}


def run_units(
    store: Store,
    keys: Mapping[UnitKey, Stamp | None],
    identity: Callable[[UnitKey], dict[str, Any]],
    work: Work,
    about: Mapping[str, Any],
    ahead: Ahead[Any] | None = None,
) -> int:
    """Do each unit and write its file; a killed run loses the current unit at most.

    Units that other processes are doing are left to them, and looked at again as long as that yields any.

    Args:
        store: where the files go.
        keys: what :func:`unfinished` returned, in the order of the work.
        identity: of a unit.
        work: returns the record of a unit.
        about: further meta data.
        ahead: is told the next unit before the work on one begins.

    Returns:
        Units done here.
    """

    def do(key: UnitKey) -> bool:
        path = store.unit(key)
        if not still_needed(path, identity(key), keys[key]):
            return False  # another process did it meanwhile
        start = time.perf_counter()
        record = work(key)
        seconds = time.perf_counter() - start
        write(path, {**record, "seconds": seconds}, identity(key), **about)
        return True

    done, left, before = 0, list(keys), len(keys) + 1
    with bar(total=len(left), desc="units", unit="unit") as shown:
        while 0 < len(left) < before:
            before, busy = len(left), []
            for key, following in zip(left, [*left[1:], None], strict=True):
                shown.set_description(f"{key.kind} {key.axis} layer {key.layer} exp {key.exp}", refresh=False)
                with claim(store.unit(key)) as mine:
                    if mine:
                        if ahead is not None:
                            ahead.keep(key, following)
                        done += do(key)
                        shown.update()
                    else:
                        busy.append(key)
            left = busy
    _tell(store, done, len(keys) - done - len(left), left)
    return done


def _tell(store: Store, done: int, others: int, busy: Sequence[UnitKey]) -> None:
    if not busy:
        log.info("%d units done here, %d meanwhile by other processes", done, others)
        return
    log.warning(
        "%d units done here, %d meanwhile by other processes, %d are being done by other processes (such as "
        "%s): the grid is complete when they are through; if one stops, run the same command again",
        done, others, len(busy), describe(lock_file(store.unit(busy[0]))),
    )  # fmt: skip


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
    fits = min(largest_that_fits(lambda n, of=of: of(n) <= limit, most) for of in lengths)
    advice = (
        f"at most {fits} examples fit (set --n_train, or shots / report_examples with --config)"
        if fits > 0
        else "not even one example fits"
    )
    raise UserError(
        f"the longest prompt needs {longest} tokens, but the model's context has {limit}: {advice}; or take "
        "a model with a longer context"
    )
