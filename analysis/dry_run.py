"""What ``--dry_run`` prints: the work that a command would do, from the model's configuration alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from analysis.runs import report_store
from analysis.store import Store, UnitKey
from analysis.workload import (
    Stage,
    Work,
    control_work,
    describe,
    load_shape,
    load_texts,
    load_tokenizer,
    preparation_work,
    report_work,
    run_sizes,
)
from configs.layers import choose_layers
from configs.settings import Settings

KINDS = {"control": "imit", "report": "pred"}


def dry_run(
    store: Store,
    stages: Sequence[str],
    settings: Settings,
    axes: Sequence[str] = (),
    layer: str = "all",
    exps: Iterable[int] = (),
    *,
    reader: str | None = None,
    method: str = "pcascore",
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str | None = None,
    token_budget: int | None = None,
    overwrite: bool = False,
) -> str:
    """Return the work of ``stages`` (preparation, report, control) as lines for the terminal.

    Nothing is loaded but configuration, tokenizer and sentences; files are only looked for, not checked. The
    other arguments are those of analysis.runs and analysis.preparation.

    Raises:
        UserError: as the run would for a wrong model, dataset, setting or layer.
    """
    model = reader or store.model
    chosen, tokens = run_sizes(device, dtype, token_budget)
    shape = load_shape(model)
    shape = replace(shape, eager=shape.eager or attn_implementation == "eager")
    texts = load_texts(model, store.dataset, settings, load_tokenizer(model), tokens)
    layers = choose_layers(layer, store.model, load_shape(store.model).n_layers if reader else shape.n_layers)
    exps, found = list(exps), []
    for stage in stages:
        if stage == "preparation":
            last = (
                store.axes(shape.n_layers - 1)
                if method == "pcascore"
                else store.hidden(shape.n_layers - 1, method)
            )
            done = int(last.exists() and not overwrite)
            found.append(Stage(stage, preparation_work(texts, shape, method), 1 - done, done))
            continue
        target = report_store(store, model) if stage == "report" else store
        keys = [
            UnitKey(KINDS[stage], axis, at, exp, levels)
            for levels in settings.levels for at in layers for axis in axes for exp in exps
        ]  # fmt: skip
        todo = [key for key in keys if overwrite or not target.unit(key).exists()]
        experiments = sorted({key.exp for key in todo})
        unit = Work()
        if todo:
            unit = (
                control_work(texts, shape, experiments)
                if stage == "control"
                else report_work(texts, experiments)
            )
        found.append(Stage(stage, unit, len(todo), len(keys) - len(todo)))
    return describe(model, shape, found, chosen, tokens)
