"""The scaling benchmark counts what it says, and its slopes are exact; times are never asserted."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from analysis.engine.request import Request
from analysis.models.shape import load_shape
from tasks.benchmarks import bench_scaling
from tasks.benchmarks.bench_scaling import Found, Job, make_task, section, slope, spaced, truncated
from tests.conftest import ARCHITECTURES, make_model
from utils import LoadedModel, load_model

TINY_RUN = ["--prep", "4", "--examples", "4", "--max_new_tokens", "5", "--repeats", "2"]


@pytest.fixture(scope="module")
def model(tiny_folder) -> str:
    return str(tiny_folder)


@pytest.fixture
def found(monkeypatch) -> dict[str, list[Found]]:
    """Cells run in this process; what each part found is kept."""
    kept, measure = {}, bench_scaling.measure

    def keep(job: Job) -> list[Found]:
        kept[job.part] = measure(job)
        return kept[job.part]

    monkeypatch.setattr(bench_scaling, "in_own_process", lambda work, *args: work(*args))
    monkeypatch.setattr(bench_scaling, "measure", keep)
    return kept


def tasks(model: str, part: str, sizes: Sequence[int]) -> list[list[Request]]:
    """Return the requests of each size."""
    whole = load_model(model, device="cpu"), load_shape(model)
    job = Job(part, model, tuple(sizes), prep=4, examples=4, max_new_tokens=5)
    return [make_task(job, size, *whole).requests for size in sizes]


def distinct(requests: list[Request]) -> int:
    """Count distinct (prefix, token) pairs the slow way."""
    return len({tuple(r.ids[: i + 1]) for r in requests for i in range(len(r.ids))})


def slopes(printed: str, title: str) -> dict[str, float]:
    """Return the last row of one table by column."""
    rows = [
        line.strip("| ").split("|") for line in printed.split(title)[1].splitlines() if line.startswith("|")
    ]
    last = next(i for i, row in enumerate(rows) if row[0].strip() == "slope")
    names = [name.strip() for name in rows[0]]
    return {
        name: float(cell) for name, cell in zip(names[1:], rows[last][1:], strict=True) if "nan" not in cell
    }


def test_sentences_count_distinct_tokens_and_print_the_slope_between_them(model, found, capsys):
    argv = ["--model", model, "--part", "sentences", "--sentences", "3", "6", *TINY_RUN]
    assert bench_scaling.main(argv) == 0
    counted = [distinct(requests) for requests in tasks(model, "sentences", (3, 6))]
    assert [f.tokens for f in found["sentences"]] == [f.floor for f in found["sentences"]] == counted
    assert [f.output for f in found["sentences"]] == [3 * 4 * 32 * 4, 6 * 4 * 32 * 4]  # B x L x D x float32
    assert [len(f.runs) for f in found["sentences"]] == [2, 2]
    row = slopes(capsys.readouterr().out, "## Sentences")
    assert row["tokens"] == row["floor"] == round(math.log2(counted[1] / counted[0]), 2) < 1
    assert row["of it output"] == 1.0 and "written" not in row


def test_a_control_unit_keeps_its_sixteen_trials_while_its_examples_grow(model, found, capsys):
    assert bench_scaling.main(["--model", model, "--part", "n", "--n", "1", "3", *TINY_RUN]) == 0
    few, many = tasks(model, "n", (1, 3))
    assert [len(few), len(many)] == [16, 16]
    # <|im_start|> is token 2: the system turn, two turns per example, the request and the answer
    turns = [max(r.ids.tolist().count(2) for r in requests) for requests in (few, many)]
    assert turns == [1 + 2 * 1 + 2, 1 + 2 * 3 + 2]
    for f, requests in zip(found["n"], (few, many), strict=True):
        assert f.written == 8 * 5, "a random model ends no reply"
        assert f.tokens == f.floor
        # the last token of a reply is forwarded only if its sentence holds it
        assert f.written - 8 <= f.tokens - distinct(requests) <= f.written
    assert slopes(capsys.readouterr().out, "## Control unit")["written"] == 0


def test_branches_hang_off_one_conversation_of_the_same_length(model, found, capsys):
    argv = ["--model", model, "--part", "branches", "--branches", "1", "2", "8", *TINY_RUN]
    assert bench_scaling.main(argv) == 0
    of_size = tasks(model, "branches", (1, 2, 8))
    assert [len(requests) for requests in of_size] == [1, 2, 8]
    assert len({max(len(r.ids) for r in requests) for requests in of_size}) == 1
    longest = max(of_size[2], key=lambda r: len(r.ids)).ids
    before = of_size[2][:6]  # both targets at N = 1, 2, 3 of 4
    shared = [int(np.cumprod(r.ids == longest[: len(r.ids)]).sum()) for r in before]
    assert shared == sorted(shared) and len(set(shared)) == 3
    assert len({len(r.ids) - leaves for r, leaves in zip(before, shared, strict=True)}) == 1
    assert [f.written for f in found["branches"]] == [5, 10, 40]
    assert [f.tokens for f in found["branches"]] == [f.floor for f in found["branches"]]
    row = slopes(capsys.readouterr().out, "## Replies of up to 5 tokens after at most 4 examples")
    assert row["written"] == 1 and row["tokens"] < 0.5


def test_layers_read_change_the_output_alone(model, found, capsys):
    argv = ["--model", model, "--part", "layers", *TINY_RUN]
    assert bench_scaling.main(argv) == 0
    # an eighth of 4 blocks is none, so 1, 2, 4
    assert [f.output for f in found["layers"]] == [4 * layers * 32 * 4 for layers in (1, 2, 4)]
    row = slopes(capsys.readouterr().out, "## Layers read of 4 sentences")
    assert row["tokens"] == row["GFLOP"] == 0 and row["of it output"] == 1


def test_depth_multiplies_operations_and_leaves_tokens(model, found, capsys):
    argv = ["--model", model, "--part", "depth", "--depth", "1", "2", "4", *TINY_RUN]
    assert bench_scaling.main(argv) == 0
    one, two, four = found["depth"]
    assert one.tokens == two.tokens == four.tokens == distinct(tasks(model, "depth", (4,))[0])
    assert (two.flops, four.flops) == (2 * one.flops, 4 * one.flops)
    assert one.output == two.output == four.output == 4 * 1 * 32 * 4
    assert slopes(capsys.readouterr().out, "## Blocks of the model")["GFLOP"] == 1


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_truncated_model_gives_the_states_of_the_whole_at_its_last_block(kind):
    whole = make_model(ARCHITECTURES[kind])
    small = truncated(whole, 3)
    ids, states = torch.arange(20, 50)[None], {}
    for name, model in (("whole", whole), ("small", small)):
        block = model.base_model.layers[2]
        block.register_forward_hook(lambda module, args, out, name=name: states.update({name: out}))
        model(ids)
    torch.testing.assert_close(states["small"], states["whole"], rtol=0, atol=0)
    assert len(small.base_model.layers) == small.config.num_hidden_layers == 3
    if hasattr(whole.config, "layer_types"):  # Llama and Mistral have blocks of one kind
        assert small.config.layer_types == whole.config.layer_types[:3]
    assert len(whole.base_model.layers) == whole.config.num_hidden_layers == 4
    assert {w.data_ptr() for w in small.parameters()} < {w.data_ptr() for w in whole.parameters()}


def test_the_engine_reads_the_same_from_a_truncated_model(tiny_lm):
    request = Request(np.arange(20, 50), [(4, 9)])
    short: LoadedModel = replace(tiny_lm, model=truncated(tiny_lm.model, 2))
    read = [bench_scaling.PrefixTree(lm.model, lm.tokenizer).read([request], [1]) for lm in (tiny_lm, short)]
    np.testing.assert_array_equal(read[0][0].pooled, read[1][0].pooled)
    assert short.n_layers == 2 and tiny_lm.n_layers == 4


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7, -0.5])
def test_the_slope_of_a_power_law_is_its_power(power):
    sizes = [16, 32, 64, 128]
    assert slope(sizes, [3 * size**power for size in sizes]) == pytest.approx(power, abs=1e-12)


def test_the_slope_is_that_of_least_squares_on_logarithms():
    # logs base 2: sizes 0 1 2 3, values 0 1 1 4; slope (-1.5 x -1.5 - .5 x -.5 + .5 x -.5 + 1.5 x 2.5) / 5
    assert slope([1, 2, 4, 8], [1, 2, 2, 16]) == pytest.approx(6 / 5)


def test_what_has_no_logarithm_has_no_slope():
    assert math.isnan(slope([1, 2], [0, 5])) and math.isnan(slope([1, 2], [-1, 5]))
    assert math.isnan(slope([4, 4], [1, 2]))


def test_the_last_layer_is_always_among_those_read():
    assert spaced(4, 30) == [6, 14, 21, 29]
    assert spaced(1, 30) == [29]
    assert spaced(30, 30) == list(range(30))


def test_a_section_shows_medians_and_the_slopes_of_all_columns():
    sizes, mb = (10, 20, 40), 2**20
    rows = [
        Found(100 * n, 50 * n, 10**9 * n * n, 0, "float32", [n, 9.0 * n, 2.0 * n], mb * (n + 7), mb * n)
        for n in sizes
    ]
    text = "\n".join(section(Job("sentences", "m", sizes), rows))
    cells = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert cells[2] == ["10", "1,000", "500", "100.0", "20.00", "17.0", "10.00", "7.0"]
    assert cells[5] == ["slope", "1.00", "1.00", "2.00", "1.00", "0.73", "1.00", "0.00"]
    assert "Seconds grow with slope 1.00 (1.00 to 1.00 in the runs" in text and "needs with 2.00." in text


def test_sizes_take_turns_and_every_run_is_kept(model, monkeypatch):
    order, seconds = [], iter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    def run(task: bench_scaling.Task) -> Found:
        order.append(len(task.requests))
        return Found(1, 1, 1, 0, "float32", [next(seconds)])

    monkeypatch.setattr(bench_scaling, "run", run)
    timed = bench_scaling.time_sizes(Job("sentences", model, (2, 3), repeats=3))
    assert order == [2, 3, 2, 3, 2, 3]
    assert [f.runs for f in timed] == [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]


def test_operations_count_the_replies_that_were_written(model, monkeypatch):
    job = Job("branches", model, (2,), examples=2, max_new_tokens=5)
    task = make_task(job, 2, load_model(model, device="cpu"), load_shape(model))
    task.tree.context.stops = frozenset(range(512))  # every reply ends at once
    found = bench_scaling.run(task)
    assert found.written == 0 and found.tokens == distinct(task.requests)
    prompts = [replace(r, reply=replace(r.reply, max_new_tokens=0)) for r in task.requests]
    assert found.flops == bench_scaling.flops(task.shape, bench_scaling.work_of(prompts, 4, 512))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot forget the peak")
def test_growth_counts_what_was_held_at_once():
    size = 64 * 2**20
    held = [np.ones(size, np.uint8)]
    work: Callable[[], int] = lambda: sum(int(np.ones(size, np.uint8)[-1]) for _ in range(3))  # noqa: E731
    grown, result = bench_scaling.growth(work)
    assert result == 3 and len(held) == 1
    assert 0.95 * size < grown < 1.3 * size  # one at a time, and nothing of before


def test_a_real_measurement_runs_in_a_process_of_its_own(model):
    job = Job("sentences", model, (3,), repeats=1)
    peak, output = bench_scaling.in_own_process(bench_scaling.measure_memory, job, 3)
    assert output == 3 * 4 * 32 * 4 and peak >= 0


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--part", "layers", "--layers", "2", "5"], "--layers 5: at most 4, the blocks of the model"),
        (["--part", "depth", "--depth", "8"], "--depth 8: at most 4"),
        (["--branches", "9", "--examples", "4"], "--branches 9: at most 8, twice the --examples"),
        (["--part", "sentences", "--sentences", "99999"], "99999 sentences are needed"),
    ],
)
def test_sizes_that_cannot_be_made_are_one_line_of_error(flags, error, model, found, capsys):
    assert bench_scaling.main(["--model", model, "--layers", "1", "--depth", "1", *flags]) == 2
    captured = capsys.readouterr().err
    assert error in captured and captured.splitlines()[-1].startswith("error: ")
