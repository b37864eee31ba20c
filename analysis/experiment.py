"""What control and report share: the fitted axes, the sentences, and the loop over units of work."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from analysis.ahead import Ahead
from analysis.claims import claim, describe, lock_file
from analysis.classifiers import AxisSet
from analysis.ensemble import ENSEMBLE, Ensemble, fit_ensemble
from analysis.levels import level_cuts, to_levels
from analysis.missing import command
from analysis.prefix_tree import Counters, PrefixTree, Reading, Request
from analysis.preparation import PREP_SETTINGS, load_axes, run_meta
from analysis.process_prompts import Prompts, load_prompts
from analysis.progress import bar
from analysis.store import Stamp, Store, UnitKey, finished, read, stamp, still_needed, write
from configs.settings import Settings, as_plain
from utils import LoadedModel, UserError, fingerprint

log = logging.getLogger(__name__)

Work = Callable[[UnitKey], dict[str, Any]]


@dataclass(frozen=True)
class Study:
    """Prepared sentences and axes of one model on one dataset, read from disk."""

    store: Store
    settings: Settings
    prompts: Prompts
    identity: Mapping[str, Any]
    """What the axes depend on, as recorded by the preparation."""
    sentences: list[str]
    axis_rows: np.ndarray
    """(n_axis,) rows that fitted the axes."""
    trial_rows: np.ndarray
    """(n_trial,) rows that experiments draw from."""
    loaded: dict[int, tuple[AxisSet, dict[str, Any]]] = field(default_factory=dict, repr=False, compare=False)
    """Axes files that were read, by layer."""

    def axes(self, layer: int) -> AxisSet:
        """Return the axes of one layer."""
        return self._load(layer)[0]

    def scores(self, layer: int, axis: str) -> np.ndarray:
        """Return (B,) scores of every sentence on one axis, in training deviations."""
        if axis == ENSEMBLE:
            return self.ensemble.scores
        return self._load(layer)[1]["scores"][:, self.axes(layer).index(axis)]

    def labels(self, layer: int, axis: str, levels: int = 2) -> np.ndarray:
        """Return (B,) int64 labels; of two, 1 means a score above the axis's threshold."""
        scores = self.scores(layer, axis)
        middle = self.ensemble.threshold if axis == ENSEMBLE else self.axes(layer).threshold(axis)
        return to_levels(scores, level_cuts(scores[self.axis_rows], middle, levels))

    def turn(self, layer: int, key: UnitKey) -> int:
        """Return -1 for a principal component whose arbitrary sign is against the target layer's, or 1."""
        if not key.axis.startswith("pc") or key.axis not in self.axes(layer).names:
            return 1
        here, target = (self.scores(at, key.axis)[self.axis_rows] for at in (layer, key.layer))
        return -1 if (here - here.mean()) @ (target - target.mean()) < 0 else 1

    def imported(self, layer: int, axis: str) -> str | None:
        """Return what tells an imported direction from others of its name, None if the axis was fitted."""
        return self._load(layer)[1].get("imported", {}).get(axis)

    @cached_property
    def ensemble(self) -> Ensemble:
        """``lr_ensemble``, made of the ``lr`` axes of all layers."""
        by_layer = np.stack([self.scores(layer, "lr") for layer in self.layers], axis=1)
        return fit_ensemble(by_layer, self.axis_rows, self.settings.threshold)

    def _load(self, layer: int) -> tuple[AxisSet, dict[str, Any]]:
        if layer not in self.loaded:
            self.loaded[layer] = load_axes(self.store, layer)
        return self.loaded[layer]

    @cached_property
    def layers(self) -> list[int]:
        """Layers that have axes."""
        return self.store.layers()

    def check_model(self, lm: LoadedModel) -> None:
        """Raise UserError if ``lm`` is not the model, or not in the precision, that the axes belong to."""
        self._check("model", lm.fingerprint)
        self.check_dtype(lm.dtype)

    def check_dtype(self, dtype: str) -> None:
        """Raise UserError if ``dtype`` is not the precision that the axes belong to."""
        self._check("dtype", dtype)

    def _check(self, name: str, now: str) -> None:
        if self.identity[name] != now:
            raise UserError(
                f"the axes in {self.store.folder} were made with {name} {self.identity[name][:16]}, "
                f"this run has {now[:16]}: give the same --model and --dtype, or prepare again with "
                "main_prep.py --overwrite"
            )

    def meta(self, lm: LoadedModel) -> dict[str, Any]:
        """Return what units record besides their identity; ``lm`` does the work."""
        source = {"source_model": self.store.model, "source_fingerprint": self.identity["model"]}
        return run_meta(lm, self.store, self.settings, self.identity["dataset"]) | source


def open_study(store: Store, settings: Settings) -> Study:
    """Read the preparation of ``store``; wrong or missing preparations are errors with the command to run."""
    layers = store.layers()
    load_axes(store, layers[0] if layers else 0)  # the error for a missing preparation
    meta = read(store.axes(layers[0]))["meta"]
    identity = meta["identity"]
    _check_complete(store, layers, meta.get("n_layers", len(layers)))
    now = as_plain(settings)
    differ = [name for name in PREP_SETTINGS if identity.get(name) != now[name]]
    if differ:
        shown = "; ".join(f"{name}: {identity.get(name)} there, {now[name]} now" for name in differ)
        raise UserError(
            f"the axes in {store.folder} were made with other settings ({shown}): give the same --config and "
            "--seed, choose another --results folder, or run main_prep.py with --overwrite"
        )
    split = read(store.split, identity)
    prompts = load_prompts(store.dataset)
    rows = split["axis_rows"], split["trial_rows"]
    return Study(store, settings, prompts, identity, split["sentences"], *rows)


def _check_complete(store: Store, layers: Sequence[int], n_layers: int) -> None:
    missing = sorted(set(range(n_layers)) - set(layers))
    if missing or not store.split.exists():
        what = f"axes of layers {', '.join(map(str, missing))}" if missing else store.split.name
        raise UserError(f"the preparation in {store.folder} lacks {what}: run `{command(store)}`")


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
