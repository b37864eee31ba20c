"""What every experiment starts from: the sentences, the fitted axes, and what a unit of work depends on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from analysis.axes.ensemble import Ensemble, fit_ensemble
from analysis.axes.levels import level_cuts, to_levels
from analysis.axes.names import ENSEMBLE, LR, pc_number
from analysis.axes.read import load_axes
from analysis.base.errors import UserError
from analysis.base.seeds import fingerprint
from analysis.classifiers import AxisSet
from analysis.engine.steering import Steering
from analysis.experiments.preparation import PREP_SETTINGS, run_meta
from analysis.process_prompts import Prompts, load_prompts
from analysis.results.commands import command
from analysis.results.store import Store, UnitKey, read
from configs.settings import Settings, as_plain
from data.load import load_dataset
from utils import LoadedModel

log = logging.getLogger(__name__)


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
        return to_levels(scores, level_cuts(scores[self.trial_rows], middle, levels))

    def can_push(self, key: UnitKey) -> bool:
        """Return whether the axis of a unit has a direction at its layer."""
        return key.axis in self.axes(key.layer).names

    def push(self, key: UnitKey, alpha: float, start: int, stop: int | None) -> Steering:
        """Return what adds ``alpha`` deviations along a unit's axis to the tokens from start to stop."""
        axes = self.axes(key.layer)
        k = axes.index(key.axis)
        rows = axes.directions[[k]], axes.mean[None], axes.scales[[k]]
        return Steering((key.layer,), "add", *rows, alpha, start, stop)

    def turn(self, layer: int, key: UnitKey) -> int:
        """Return -1 for a principal component whose arbitrary sign is against the target layer's, or 1."""
        if pc_number(key.axis) is None or key.axis not in self.axes(layer).names:
            return 1
        here, target = (self.scores(at, key.axis)[self.axis_rows] for at in (layer, key.layer))
        return -1 if (here - here.mean()) @ (target - target.mean()) < 0 else 1

    def imported(self, layer: int, axis: str) -> str | None:
        """Return what tells an imported direction from others of its name, None if the axis was fitted."""
        return self._load(layer)[1].get("imported", {}).get(axis)

    @cached_property
    def ensemble(self) -> Ensemble:
        """``lr_ensemble``, made of the ``lr`` axes of all layers."""
        by_layer = np.stack([self.scores(layer, LR) for layer in self.layers], axis=1)
        return fit_ensemble(by_layer, self.trial_rows, self.settings.threshold)

    def _load(self, layer: int) -> tuple[AxisSet, dict[str, Any]]:
        if layer not in self.loaded:
            self.loaded[layer] = load_axes(self.store, layer, self.identity)
        return self.loaded[layer]

    @cached_property
    def layers(self) -> list[int]:
        """Layers that have axes."""
        return self.store.layers()

    def check_sides(self, keys: Iterable[UnitKey]) -> None:
        """Raise UserError if an axis or its levels are not there, or all trial sentences are on one side."""
        for layer, axis, levels in dict.fromkeys((key.layer, key.axis, key.levels) for key in keys):
            upper = self.labels(layer, axis, levels)[self.trial_rows] >= levels / 2
            if upper.all() or not upper.any():
                raise UserError(
                    f"all {len(upper)} trial sentences are on one side of the threshold of axis {axis!r}, "
                    f"layer {layer}: there is nothing to tell apart; take another axis, threshold: median, "
                    "or more trial sentences (n_trial), with --config"
                )

    def check_model(self, lm: LoadedModel) -> None:
        """Raise UserError if ``lm`` is not the model, or not in the precision, that the axes belong to."""
        self._check("model", lm.fingerprint)
        self.check_dtype(lm.dtype)

    def check_dtype(self, dtype: str) -> None:
        """Raise UserError if ``dtype`` is not the precision that the axes belong to."""
        self._check("dtype", dtype)

    def _check(self, name: str, now: str) -> None:
        there = str(self.identity.get(name))
        if there != now:
            raise UserError(
                f"the axes in {self.store.folder} were made with {name} {there[:16]}, "
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
    _, first = load_axes(store, layers[0] if layers else 0)  # or the error for a missing preparation
    identity = first["meta"]["identity"]
    _check_complete(store, layers, first["meta"].get("n_layers") or len(layers))
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


# ---------------------------------------------------------------- units of work


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


# ---------------------------------------------------------------- before there is a preparation


@dataclass(frozen=True)
class DraftStudy(Study):
    """The sentences alone: enough to build every prompt, and so to count what a run will take.

    The labels are those of the dataset, for every axis: they take as many tokens as any others.
    """

    classes: np.ndarray = field(kw_only=True)
    """(B,) labels of the dataset."""
    n_layers: int = field(kw_only=True)
    """Blocks of the model."""

    def labels(self, layer: int, axis: str, levels: int = 2) -> np.ndarray:
        """Return (B,) labels of the dataset."""
        return self.classes

    def can_push(self, key: UnitKey) -> bool:
        """Return whether the axis has a direction."""
        return key.axis != ENSEMBLE

    def push(self, key: UnitKey, alpha: float, start: int, stop: int | None) -> Steering:
        """Return a push that tells which tokens it acts on; along which direction is not known yet."""
        one = np.ones((1, 1), np.float32)
        return Steering((key.layer,), "add", one, 0 * one, one[0], alpha, start, stop)

    def check_sides(self, keys: Iterable[UnitKey]) -> None:
        """Take any axis: which there will be is not known."""

    def check_dtype(self, dtype: str) -> None:
        """Take any precision: it will be that of the axes."""

    @property
    def layers(self) -> list[int]:
        """All layers."""
        return list(range(self.n_layers))


def draft_study(store: Store, settings: Settings, n_layers: int) -> DraftStudy:
    """Return the study that a preparation would lead to, from the dataset alone; for ``--dry_run``."""
    split = load_dataset(store.dataset, settings.seed, settings.n_axis, settings.n_trial).compact()
    return DraftStudy(
        store, settings, load_prompts(store.dataset), {}, split.dataset.sentences, split.axis_rows,
        split.trial_rows, classes=split.dataset.labels, n_layers=n_layers,
    )  # fmt: skip
