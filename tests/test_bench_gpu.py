"""The GPU benchmark counts what it says; it runs whole on the CPU. Times are never asserted."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.request import Request
from analysis.models.shape import Shape
from tasks.benchmarks import bench_gpu, gpu_lab
from tasks.benchmarks.bench_gpu import main
from tasks.benchmarks.gpu_lab import Drawn, Lab, Sizes, measure, words

QUICK = ["--shape", "tiny", "--device", "cpu", "--quick"]
TITLES = ("Ceilings", "Preparation", "Trunk", "Branches", "Report", "Peak memory")


@pytest.fixture(scope="module")
def lab() -> Lab:
    """One layer of hidden size 4, whose sizes are easy to count with; ceilings 1e6 FLOP/s, 1000 bytes/s."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=4, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    # q and o 4 x 4, k and v 4 x 2, MLP 3 times 4 x 6
    shape = Shape(1, 4, 2, 1, 2, 6, 16, False, 2048, 269, 2 * 16 + 2 * 8 + 3 * 24, False)
    return Lab(shape, PrefixTree(model, words(16), 64), Sizes(repeats=2), 1e6, 1000.0, {})


def numbers(line: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", line)]


def distinct(requests: list[Request]) -> int:
    return len({tuple(r.ids[: i + 1]) for r in requests for i in range(len(r.ids))})


def test_a_quick_run_prints_all_sections_with_finite_numbers(capsys):
    assert main(QUICK) == 0
    printed = capsys.readouterr().out
    places = [printed.index(f"## {title}") for title in TITLES]
    assert places == sorted(places)
    assert not re.search(r"\b(nan|inf)\b", printed, re.IGNORECASE)
    assert "139,584 random weights, float32" in printed
    for line in re.findall(r"^- [\d.]+ s .*$", printed, re.MULTILINE):
        assert numbers(line)[0] > 0 and numbers(line)[2] > 0, line
    assert [float(x) for x in re.findall(r"forwarded, ([\d.]+) x of floor", printed)] == [1.0] * 4
    assert all(
        float(x) > 0 and math.isfinite(float(x)) for x in re.findall(r"([\d.]+) x the engine", printed)
    )
    assert printed.count("not measured (no GPU)") == 2


def test_one_part_is_run_alone_after_the_ceilings(capsys):
    assert main([*QUICK, "--part", "trunk"]) == 0
    printed = capsys.readouterr().out
    assert "## Ceilings" in printed and "## Trunk" in printed and "## Preparation" not in printed


def test_tokens_floor_and_operations_of_a_small_tree_are_those_counted_by_hand(lab):
    requests = [Request([1, 2, 3, 4], [(2, 4)]), Request([1, 2, 5], [(2, 3)])]
    found = measure(lab, "prep", requests, [0])
    assert (found.floor, found.tokens, found.runs) == (5, 5, 2)  # 1 2 3 4 and 5
    # 5 tokens x 120 weights x 2; pairs 1 + 2 + 3 + 4 + 3 of 2 heads of size 2, x 4
    operations = 2 * 5 * 120 + 4 * 2 * 2 * 13
    assert operations == 1408
    # 1408 operations in 0.01 s are 0.1408e6 per second, of 1e6
    assert "14.1% of the fastest product" in lab.utilisation(requests, 0.01)


def test_a_floor_counts_the_reply_tokens_written(lab):
    requests = Drawn(16).control_unit((0,), 3)
    found = measure(lab, "branches", requests, [0])
    written = found.floor - distinct(requests)
    # at N = 0 the flips are the same prompt: 4 active requests write up to 3 tokens each
    assert 4 <= written <= 12
    assert found.floor - 4 <= found.tokens <= found.floor


def test_a_decode_floor_is_weights_and_cache_over_bandwidth(lab):
    steps = gpu_lab.DecodeClock(lab.tree)
    steps.steps = [(2.0, 10, 3), (2.0, 10, 3), (2.0, 10, 3)]
    # weights 4 x (120 + 16 x 4) = 736 bytes; a slot 2 x 4 bytes x 1 layer x 1 head x 2 = 16: 896 ms in all
    step, _ = bench_gpu.decode_lines(lab, steps)
    assert "2000.000 ms per step of 3 replies (median of 3), 2.23 x of floor 896.0000 ms" in step


def test_decode_steps_are_those_with_a_later_step_in_their_group(lab):
    requests = [Request([1, 2], reply=gpu_lab.Sampling(4)), Request([1, 3], reply=gpu_lab.Sampling(4))]
    tree = PrefixTree(lab.tree.model, words(16), 64)
    tree.context.stops = frozenset()  # all replies have 4 tokens
    steps = gpu_lab.DecodeClock(tree)
    handle = tree.model.base_model.register_forward_pre_hook(steps, with_kwargs=True)
    tree.read(requests, [0])
    handle.remove()
    # prompts take 3 slots, replies have 8 of their own; the time of the fourth step has no end
    assert [(slots, replies) for _, slots, replies in steps.steps] == [(11, 2), (11, 2), (11, 2)]


def test_a_control_unit_has_two_chains_with_all_trials_on_them():
    drawn, shots = Drawn(512), (0, 2, 4)
    requests = drawn.control_unit(shots, 7)
    assert len(requests) == 3 * 8
    sentences = drawn.sentences(5, 8, 18)
    chains = [drawn.conversation(sentences[:4], flip)[0] for flip in (False, True)]
    longest = requests[16:]
    assert [r.ids[: len(chains[0])] for r in longest] == [chains[0]] * 4 + [chains[1]] * 4
    active = [r for r in requests if r.reply]
    assert len(active) == 12 and {r.reply.max_new_tokens for r in active} == {7}
    read = [r for r in requests if not r.reply][-1]
    start, stop = read.spans[0]
    assert read.ids[start:stop] == sentences[4] and stop == len(read.ids)


def test_label_assignments_differ_at_the_labels_only():
    one, other = Drawn(512).report(9)
    differ = np.flatnonzero(np.array(one.ids) != np.array(other.ids))
    assert differ.tolist() == [place + 1 for place in one.logits_at]
    assert {*np.array(one.ids)[differ]} <= {509, 510}


def test_a_star_has_the_asked_for_tokens():
    requests = Drawn(128256).star(1200)
    own = [stop - start for r in requests for start, stop in r.spans]
    assert {start for r in requests for start, _ in r.spans} == {35} and 19.5 < np.mean(own) < 20.5
    assert distinct(requests[:50]) <= 35 + sum(own[:50])


def test_the_memory_of_a_report_beyond_the_cache_is_compared_with_all_logits(lab):
    requests = [Request([1, 2, 3], logits_at=[1])]  # 3 slots of 16 bytes: 48
    lab.peaks["report"] = (1_000_000_000, 1_000_000_148)
    assert "are less than" in bench_gpu.no_full_logits(lab, requests, 101)
    assert "NOT less" in bench_gpu.no_full_logits(lab, requests, 100)
    lab.peaks.clear()
    assert bench_gpu.no_full_logits(lab, requests, 100) == "not measured (no GPU)"


@pytest.mark.parametrize("flags", [["--part", "nothing"], ["--shape", "9b"], ["--sentences", "0"]])
def test_an_unknown_choice_exits_with_2(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_without_a_gpu_the_error_is_one_line_that_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no CUDA GPU" in error and "--device cpu" in error


def test_the_plain_loop_is_scaled_linearly_between_the_n_that_ran(lab, monkeypatch):
    seconds = iter([1.0, 5.0])  # at N = 0 and N = 4
    monkeypatch.setattr(bench_gpu, "clock", lambda run: next(seconds))
    monkeypatch.setattr(bench_gpu.PlainLoop, "__call__", lambda self, requests, progress: None)
    small = Lab(lab.shape, lab.tree, Sizes(plain_shots=2), lab.gemm, lab.copy, {})
    unit = Drawn(16).control_unit((0, 2, 4), 3)
    # N = 2 takes 3 s; 4 pairs of flip and target: (1 + 3 + 5) x 4
    line = bench_gpu.plain_line(small, (0, 2, 4), unit, 2.0)
    assert "36.000 s for the unit, 18.0 x the engine" in line and "4 of 24 prompts: N = 0, 4" in line


def test_a_model_that_does_not_fit_is_one_line_of_error(monkeypatch, capsys):
    def full(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench_gpu, "ceilings", full)
    assert main(QUICK) == 2
    captured = capsys.readouterr()
    assert "Llama tiny" in captured.out  # what is known is printed at once
    assert captured.err.count("\n") == 1 and "--shape 1b" in captured.err


def test_the_shapes_are_those_of_llama(tmp_path):
    for name, parameters in {"8b": 8_030_261_248, "1b": 1_235_814_400}.items():
        config = LlamaConfig(**dict(zip(gpu_lab._FIELDS, gpu_lab.SHAPES[name], strict=True)))
        config.save_pretrained(tmp_path / name)
        assert bench_gpu.load_shape(str(tmp_path / name)).n_parameters == parameters


def test_the_peak_of_a_part_is_asked_of_the_gpu_from_its_start(lab, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: asked.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 16_000_000_000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 18_500_000_000)
    monkeypatch.setattr(lab.tree.context, "device", torch.device("cuda"))
    with lab.peak("trunk"):
        asked.append("part")
    assert asked == ["reset", "part"]
    assert "| trunk |    16.000 |     18.500 |    2.500 |" in "\n".join(bench_gpu.memory_lines(lab))
    lab.peaks.clear()


def test_steps_of_the_run_that_warms_up_are_left_out(lab, monkeypatch):
    kept = []
    monkeypatch.setattr(bench_gpu, "decode_lines", lambda lab, steps: kept.append(len(steps.steps)) or [])
    monkeypatch.setattr(bench_gpu, "plain_line", lambda *args: "")
    monkeypatch.setattr(lab.tree.context, "stops", frozenset())  # all replies have 4 tokens
    monkeypatch.setattr(lab.tree.context, "token_budget", 512)
    for repeats in (1, 2):
        lab.sizes = Sizes(examples=2, new_tokens=4, repeats=repeats)
        bench_gpu.branches_part(lab)
    assert kept == [3, 6]  # one group of replies, whose last step has no end
