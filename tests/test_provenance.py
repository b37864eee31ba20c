"""Numbers that are not finite, labels of one kind, and what a result says of where it comes from."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from analysis.base import files
from analysis.base.errors import UserError
from analysis.experiments import preparation, runs
from analysis.experiments.control import ControlPrompts
from analysis.experiments.machine import Machine
from analysis.experiments.preparation import prepare
from analysis.experiments.study import open_study
from analysis.results.store import Store, UnitKey, read, write
from tasks.fault_harness import SETTINGS
from tests.conftest import TINY, LlamaConfig, make_model
from tests.test_faults import copied_store, leftovers, prepared_once, run_control, run_report  # noqa: F401
from utils import LoadedModel

# ---------------------------------------------------------------- numbers and labels


def poisoned(lm: LoadedModel, layer: int, value: float = float("nan")) -> LoadedModel:
    """Return the model with one block that writes ``value``; it passes for the same model."""
    model = make_model(LlamaConfig(**TINY))
    model.model.layers[layer].mlp.down_proj.weight[0, 0] = value
    return dataclasses.replace(lm, model=model)


@pytest.mark.parametrize("method", ["pcascore", "mean", "each"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_stop_the_preparation(tiny_lm, tmp_path, method, value):
    store = Store(tmp_path, tiny_lm.name, "commonsense")
    with pytest.raises(
        UserError, match=r"activations of layer 2 are not finite in float32.* sentence '\w.*--dtype"
    ):
        prepare(poisoned(tiny_lm, 2, value), "commonsense", SETTINGS, store, method=method)
    assert not store.axes(2).exists() and not store.hidden(2, method).exists() and not leftovers(tmp_path)


@pytest.mark.parametrize("layer", [1, 3])
def test_activations_that_are_not_finite_at_any_layer_stop_control(store, tiny_lm, layer):
    unit = "control of lr, layer 1, experiment 0"
    with pytest.raises(
        UserError, match=rf"activations of layer {layer} \({unit}\) are not finite in float32"
    ):
        run_control(store, poisoned(tiny_lm, layer))
    assert store.units("imit") == [] and not leftovers(store.root)


def test_logits_that_are_not_finite_stop_the_report(store, tiny_lm):
    with pytest.raises(
        UserError, match=r"logits .*report of lr, layer 1, experiment 0\) .* the sentence '\w"
    ):
        run_report(store, poisoned(tiny_lm, 3))
    assert store.units("pred") == []


def test_the_advice_depends_on_the_dtype():
    advice = {t: str(preparation.not_finite("x", "s", t)) for t in ("float16", "bfloat16", "float32")}
    assert "--dtype bfloat16 or float32" in advice["float16"] and "--dtype float32" in advice["bfloat16"]
    assert "check the model's weights" in advice["float32"]


@pytest.mark.parametrize("run", [run_control, run_report])
def test_an_axis_with_all_sentences_on_one_side_is_refused_before_the_work(store, tiny_lm, monkeypatch, run):
    record = read(store.axes(1))
    meta = record.pop("meta")
    record["thresholds"] = np.full_like(record["thresholds"], 1e6)
    write(store.axes(1), record, meta.pop("identity"))
    monkeypatch.setattr(Machine, "model", lambda *args: pytest.fail("loaded a model for nothing"))
    with pytest.raises(
        UserError, match="all 20 trial sentences are on one side of the threshold of axis 'lr', layer 1"
    ):
        run(store, tiny_lm)


def test_one_label_among_the_examples_of_an_experiment_is_fine(store, tiny_lm):
    study = open_study(store, SETTINGS)
    labels = study.labels(1, "lr")
    one = [e for e in range(40) if len(set(labels[ControlPrompts.order(fake(study), e)][:2])) == 1][0]
    assert runs.run_control(store, SETTINGS, ["lr"], "1", [one], models={tiny_lm.name: tiny_lm}) == (1, 0)


def fake(study: object) -> object:
    """What ``order`` needs of the prompts."""
    return type("Order", (), {"settings": SETTINGS, "study": study})()


# ---------------------------------------------------------------- provenance


def test_every_file_says_where_it_comes_from(store, tiny_lm):
    run_control(store, tiny_lm)
    run_report(store, tiny_lm)
    identity = read(store.axes(0))["meta"]["identity"]
    for path in store.folder.glob("*.pkl"):
        meta = read(path)["meta"]
        assert meta["settings"]["shots"] == [0, 2] and meta["seed"] == 42
        assert meta["model_fingerprint"] == tiny_lm.fingerprint == identity["model"]
        assert meta["dataset_fingerprint"] == identity["dataset"] and meta["dataset_key"] == "commonsense"
        assert (meta["device"], meta["dtype"], meta["attn_implementation"]) == ("cpu", "float32", "sdpa")
        assert meta["packages"]["torch"] == torch.__version__ and meta["schema"] == 2
        assert re.fullmatch(r"[0-9a-f]{40}|", meta["git_commit"]) and meta["git_dirty"] in (True, False, None)
        assert files.this_host() not in repr(meta)


def in_bfloat16(lm: LoadedModel, name: str) -> LoadedModel:
    model = make_model(LlamaConfig(**TINY)).to(torch.bfloat16)
    return LoadedModel(model, lm.tokenizer, name, lm.fingerprint)


@pytest.mark.parametrize("run", [run_control, run_report])
def test_another_dtype_on_resume_is_an_error_whether_work_is_left_or_not(store, tiny_lm, run):
    other = in_bfloat16(tiny_lm, tiny_lm.name)
    for _ in range(2):
        with pytest.raises(UserError, match="made with dtype float32, this run has bfloat16"):
            run(store, other, dtype="bfloat16")
        with pytest.raises(UserError, match="unknown dtype 'f8'"):
            run(store, tiny_lm, dtype="f8")
        run(store, tiny_lm, dtype="float32")


def test_another_dtype_of_the_reading_model_is_an_error(store, tiny_lm):
    """Its weights, and so its fingerprint, can be the same in both."""

    def run(lm: LoadedModel) -> tuple:
        return runs.run_report(store, "reader", SETTINGS, ["lr"], "1", [0], models={"reader": lm})

    reader = dataclasses.replace(tiny_lm, name="reader")
    assert run(reader)[:2] == (1, 0) and run(reader)[:2] == (0, 1)
    with pytest.raises(UserError, match="reader_dtype: 'float32' there, 'bfloat16' now"):
        run(in_bfloat16(tiny_lm, "reader"))


def test_a_device_is_recorded_but_does_not_matter(store, tiny_lm):
    run_control(store, tiny_lm, exps=1)
    path = store.unit(UnitKey("imit", "lr", 1, 0))
    record = read(path)
    meta = record.pop("meta")
    assert "device" not in meta["identity"]
    write(path, record, meta.pop("identity"), **{**meta, "device": "cuda:0"})
    assert run_control(store, tiny_lm, exps=1) == (0, 1)
