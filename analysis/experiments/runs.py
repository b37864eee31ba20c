"""Grids of units: what is missing is computed, the model is loaded only if something is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from analysis.base.processes import Shard
from analysis.engine.prefix_tree import PrefixTree
from analysis.experiments.control import Control, check_finite, control_identity
from analysis.experiments.report import Report, report_identity
from analysis.experiments.study import Study, open_study
from analysis.experiments.units import run_units, unfinished, unit_keys
from analysis.results.schema import CONTROL, REPORT
from analysis.results.store import Store, UnitKey
from configs.layers import choose_layers
from configs.settings import Settings
from utils import LoadedModel, choose_dtype, load_model, model_name

Models = dict[str, LoadedModel]
ALL = Shard()


def _loaded(models: Models | None, name: str, options: dict[str, Any]) -> LoadedModel:
    known = {} if models is None else models
    if name not in known:
        known[name] = load_model(name, **options)
    return known[name]


def _check_asked(study: Study, options: dict[str, Any]) -> None:
    """Raise UserError if --dtype names another precision than the axes have, also if no work is left."""
    asked = options.get("dtype", "auto")
    if asked != "auto":
        choose_dtype(asked, "cpu")  # the error for an unknown name
        study.check_dtype(asked)


def _layers(study: Study, spec: str) -> Sequence[int]:
    return choose_layers(spec, study.store.model, len(study.layers))


def run_control(
    store: Store,
    settings: Settings,
    axes: Iterable[str],
    layer: str,
    exps: Iterable[int],
    *,
    token_budget: int | None = None,
    overwrite: bool = False,
    models: Models | None = None,
    shard: Shard = ALL,
    **options: Any,
) -> tuple[int, int]:
    """Run the control experiments that are not on disk yet.

    Args:
        store: where the preparation lies and units go.
        settings: see configs/settings.py.
        axes: axis names.
        layer: see configs/layers.py.
        exps: experiment numbers.
        token_budget: see PrefixTree.
        overwrite: redo what exists.
        models: loaded models by name, to be shared between stages.
        shard: which units to do; the whole grid is checked.
        options: device, dtype, attn_implementation of utils.load_model.

    Returns:
        (units done here, units that are on disk already or that other processes are doing).
    """  # fmt: skip
    study = open_study(store, settings)
    _check_asked(study, options)
    keys = unit_keys(CONTROL, study, axes, _layers(study, layer), exps)

    def identity(key: UnitKey) -> dict[str, Any]:
        return control_identity(study, key)

    todo, mine = unfinished(store, keys, identity, overwrite), shard.take(keys)
    own, done = {key: todo[key] for key in mine if key in todo}, 0
    if own:
        lm = _loaded(models, store.model, options)
        control = Control(lm, study, PrefixTree(lm.model, lm.tokenizer, token_budget))
        control.check(todo)

        def work(key: UnitKey) -> dict[str, Any]:
            return check_finite(control.unit(key), key)

        done = run_units(store, own, identity, work, study.meta(lm), control.ahead)
    return done, len(mine) - done


def report_store(source: Store, reader: str) -> Store:
    """Return where reports by ``reader`` of the scores of ``source.model`` go."""
    names = model_name(reader), model_name(source.model)
    return source if names[0] == names[1] else Store(source.root, "_from_".join(names), source.dataset)


def run_report(
    source: Store,
    reader: str,
    settings: Settings,
    axes: Iterable[str],
    layer: str,
    exps: Iterable[int],
    *,
    token_budget: int | None = None,
    overwrite: bool = False,
    models: Models | None = None,
    shard: Shard = ALL,
    **options: Any,
) -> tuple[int, int, Store]:
    """Run the report experiments that are not on disk yet; see run_control.

    ``reader`` is the model that reads the scores of ``source.model``. Returns also where the units went.
    """  # fmt: skip
    study = open_study(source, settings)
    same = model_name(reader) == model_name(source.model)
    if same:
        _check_asked(study, options)
    keys = unit_keys(REPORT, study, axes, _layers(study, layer), exps)
    store = report_store(source, reader)
    lm = None if same else _loaded(models, reader, options)
    other = (lm.fingerprint, lm.dtype) if lm else (None, None)

    def identity(key: UnitKey) -> dict[str, Any]:
        return report_identity(study, key, *other)

    todo, mine = unfinished(store, keys, identity, overwrite), shard.take(keys)
    own, done = {key: todo[key] for key in mine if key in todo}, 0
    if own:
        lm = lm or _loaded(models, reader, options)
        if same:
            study.check_model(lm)
        report = Report(lm, study, PrefixTree(lm.model, lm.tokenizer, token_budget))
        report.check(todo)
        done = run_units(store, own, identity, report.unit, study.meta(lm), report.ahead)
    return done, len(mine) - done, store
