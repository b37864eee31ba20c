"""The benchmarks of the preparation count right; times are never asserted."""

from __future__ import annotations

import re

import numpy as np
import pytest

from analysis.classifiers import AxisSet, fit_layers
from analysis.experiments import preparation
from configs.settings import Settings
from data.load import load_dataset
from tasks.benchmarks import bench_precision, bench_prep
from tasks.benchmarks.bench_engine import DATASET, SEED
from tasks.benchmarks.bench_precision import effect
from tasks.benchmarks.bench_prep import Taken, make_bench, ratio, stages_table, take_turns

SENTENCES = 24


# ---------------------------------------------------------------- the benchmark of the preparation


@pytest.fixture
def times(monkeypatch):
    """What every part took, in the order run; the warm-ups come first."""
    kept, real = [], bench_prep.take_turns

    def keeping(*args):
        kept.append(real(*args))
        return kept[-1]

    monkeypatch.setattr(bench_prep, "take_turns", keeping)
    return kept


def run_bench(tiny_folder, *argv):
    words = ["--model", str(tiny_folder), "--sentences", str(SENTENCES), "--repeats", "2", *argv]
    assert bench_prep.main(words) == 0


def prompts_of(lm):
    """Token ids of every prompt of the preparation, made without the benchmark."""
    half = SENTENCES // 2
    dataset = load_dataset(DATASET, SEED, half, half).compact().dataset
    encoded = preparation.encode_sentences(lm, dataset, preparation.load_prompts(DATASET))
    return [tuple(e.ids) for e in encoded]


def distinct(sequences):
    """Count distinct (prefix, token) pairs the slow way."""
    return len({s[: i + 1] for s in sequences for i in range(len(s))})


def test_every_side_forwards_the_distinct_tokens_and_the_check_of_the_engine_is_on_top(
    tiny_folder, tiny_lm, times, capsys
):
    run_bench(tiny_folder, "--part", "prep")
    prompts, (_, prep) = prompts_of(tiny_lm), times
    floor, asked = distinct(prompts), sum(map(len, prompts))
    assert floor < asked and list(prep) == [
        "bare forward", "bare, engine's products", "engine, all layers", "whole preparation"
    ]  # fmt: skip
    assert all(len(runs) == 2 for runs in prep.values())
    for run in prep["bare forward"] + prep["bare, engine's products"] + prep["engine, all layers"]:
        assert run.tokens == floor
    assert prep["bare forward"][0].calls == -(-floor // 512)
    for run in prep["whole preparation"]:
        stages = run.stages
        check = stages["engine made and checked"].tokens
        assert stages["reading"].tokens == floor and check > 0 and run.tokens == floor + check
        assert 0 < sum(stage.seconds for stage in stages.values()) < run.seconds
        assert stages["input embeddings"].tokens > 0 and stages["fitting and writing"].seconds > 0
    out = capsys.readouterr().out
    assert f"{SENTENCES} sentences, {asked:,} prompt tokens, {floor:,} of them distinct" in out
    assert re.search(rf"\| engine, all layers +\| +{floor:,} \| +\d+ \| +1\.000 \|", out)
    assert re.search(rf"\| bare forward +\| +{floor:,} .* 1\.00 \|", out)
    assert re.search(r"The whole preparation takes \d+\.\d\d x the bare .* and \d+\.\d\d x one", out)
    assert preparation.fit_layers is fit_layers, "the stopwatch is taken off again"


def test_layers_and_chunks_forward_the_same_tokens_in_more_calls_the_smaller_the_chunk(
    tiny_folder, tiny_lm, times, capsys
):
    run_bench(tiny_folder, "--part", "layers")
    run_bench(tiny_folder, "--part", "chunks", "--budgets", "64", "256")
    floor = distinct(prompts_of(tiny_lm))
    (_, layers, _, chunks) = times
    assert list(layers) == ["last layer only", "all layers"] and list(chunks) == ["64 tokens", "256 tokens"]
    assert {run.tokens for part in (layers, chunks) for runs in part.values() for run in runs} == {floor}
    assert chunks["64 tokens"][0].calls >= floor / 64 > chunks["256 tokens"][0].calls >= floor / 256
    assert re.search(r"other layers is -?\d+\.\d % of the time", capsys.readouterr().out)


def test_the_last_layer_alone_is_what_the_layers_part_reads(tiny_lm, monkeypatch):
    bench, read = make_bench(tiny_lm, SENTENCES, None), []
    monkeypatch.setattr(bench_prep, "pool_sentences", lambda tree, encoded, layers: read.append([*layers]))
    for side in bench.parts("layers", ()).values():
        side()
    assert read == [[3], [0, 1, 2, 3]]


def test_sides_take_turns_and_each_repeat_begins_with_another(tiny_lm):
    order = []
    sides = {name: lambda name=name: order.append(name) for name in "abc"}
    assert {name: len(runs) for name, runs in take_turns(tiny_lm, sides, 4).items()} == dict.fromkeys(
        "abc", 4
    )
    assert "".join(order) == "abcbcacababc"


def test_a_ratio_is_the_median_within_repeats_and_shares_are_those_of_the_whole():
    seconds = {"whole": (3.0, 8.0, 30.0), "bare": (2.0, 4.0, 10.0)}
    times = {name: [Taken(s) for s in took] for name, took in seconds.items()}
    assert ratio(times, "whole", "bare") == 2.0
    stages = {name: Taken(0.25) for name in bench_prep.STAGES}
    rows = stages_table([Taken(5.0, stages=stages)]).splitlines()
    assert [row.split("|")[3].strip() for row in rows[2:]] == ["5.0 %"] * 5 + ["75.0 %", "100.0 %"]


@pytest.mark.parametrize(
    ("number", "words"), [("99996", "99996 sentences are needed.*has 1"), ("26", "multiple of 4")]
)
def test_a_number_of_sentences_that_cannot_be_is_one_line_of_error(tiny_folder, capsys, number, words):
    assert bench_prep.main(["--model", str(tiny_folder), "--sentences", number]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: .*{words}", line)


# ---------------------------------------------------------------- the benchmark of the precision


@pytest.fixture
def precision(tiny_folder, monkeypatch, capsys):
    """Run bench_precision in this process; return the numbers of every row of the report."""
    monkeypatch.setattr(bench_precision, "spawn", bench_precision.run_job)

    def run(*dtypes):
        argv = ["--model", str(tiny_folder), "--n_axis", "40", "--n_trial", "20", "--dtypes", *dtypes]
        assert bench_precision.main(argv) == 0
        rows = [
            line.strip("| ").split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"
        ]
        return {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows}

    return run


def test_a_precision_agrees_with_itself_exactly(precision):
    rows = precision("float32", "float32")
    axes = [row for row in rows if row.startswith("layer") and "," in row]
    assert len(axes) == 4 * 4  # the tiny model's four layers, all of the five depths
    assert all(rows[row] == ["1.0000"] * 5 for row in axes)
    accuracies = [rows[f"layer {layer} ({depth} %)"] for layer, depth in enumerate((0, 33, 67, 100))]
    assert all(a == b for a, b in accuracies) and all(0.3 < float(a) <= 1 for a, _ in accuracies)


def test_bfloat16_differs_a_little_where_random_axes_stay_what_they_are(precision):
    rows = precision("float32", "bfloat16")
    numbers = {row: [float(n) for n in cells] for row, cells in rows.items() if "," in row}
    assert all(0.9 < cells[0] <= 1 and cells[1] >= 0.7 for cells in numbers.values())
    assert any(cells[4] < 1 for row, cells in numbers.items() if row.endswith("lr"))
    assert all(cells[4] == 1 for row, cells in numbers.items() if row.endswith("random0"))
    assert {"float32", "bfloat16"} < set(rows)


def test_each_precision_is_read_in_a_process_of_its_own(tiny_folder):
    job = bench_precision.Job(str(tiny_folder), "bfloat16", "cpu", Settings(seed=0, n_axis=8, n_trial=4))
    result = bench_precision.spawn(job)
    assert (result.dtype, result.layers, result.pooled.shape) == ("bfloat16", (0, 1, 2, 3), (12, 4, 32))
    assert result.seconds > 0 and result.device == "cpu"


def test_an_effect_counts_labels_by_either_threshold_and_turns_a_component_back():
    def axes(direction, threshold):
        one = np.ones(1, np.float32)
        rows = np.array([direction], np.float32)
        return AxisSet(("pc1",), rows, np.zeros(2, np.float32), one, threshold * one, one, {})

    states = np.array([[1, 5], [2, -5], [3, 0], [4, 1]], np.float32)
    found = effect("pc1", (axes([1, 0], 2.5), axes([-1, 0], -1.5)), (states, states))
    assert found.cosine == 1 and found.same_axes == (pytest.approx(1), 1.0)
    assert found.own_axes == (pytest.approx(1), 0.75)  # the second sentence lies between the thresholds
    found = effect("pc1", (axes([1, 0], 2.5), axes([0, 1], 0.5)), (states, states[::-1]))
    assert found.cosine == 0 and found.same_axes == (pytest.approx(-1), 0.0)
