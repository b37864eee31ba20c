"""The benchmark counts its work right and both sides give the same; times are never asserted."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from analysis.engine.replies import Sampling
from analysis.engine.request import Request
from analysis.experiments.score_text import before_score
from tasks.benchmarks import bench_engine
from tasks.benchmarks.bench_engine import Cell, Result, make_requests, run_cell
from tasks.benchmarks.markdown import table
from tasks.benchmarks.plain_loop import PlainLoop, agreement
from utils import load_model

SHOTS, NEW = (0, 2), 5


@pytest.fixture(scope="module")
def model(tiny_folder):
    return str(tiny_folder)


@pytest.fixture
def results(monkeypatch):
    """Cells run in this process and are kept with what they gave."""
    done = {}

    def run_here(cell):
        done[cell.side, cell.task, cell.sentences, cell.five_layers] = result = run_cell(cell)
        return result

    monkeypatch.setattr(bench_engine, "spawn", run_here)
    return done


def distinct(sequences):
    """Count distinct (prefix, token) pairs the slow way."""
    return len({tuple(s[: i + 1]) for s in sequences for i in range(len(s))})


def lengths(model, **cell):
    requests = make_requests(Cell("engine", model=model, **cell), load_model(model, device="cpu"))
    return [r.ids.tolist() for r in requests]


def test_control_counts_distinct_tokens_for_the_engine_and_every_prompt_twice_for_written_replies(
    model, results, capsys
):
    argv = ["--model", model, "--part", "control", "--shots", *map(str, SHOTS), "--max_new_tokens", str(NEW)]
    assert bench_engine.main(argv) == 0
    prompts = {mode: lengths(model, task=mode, shots=SHOTS) for mode in ("active", "inactive")}
    of = {(side, task): r for (side, task, _, _), r in results.items()}

    inactive = sum(map(len, prompts["inactive"]))
    assert of["plain", "inactive"].tokens == of["plain", "inactive"].asked == inactive
    assert of["plain", "inactive"].calls == len(prompts["inactive"])
    assert of["engine", "inactive"].tokens == distinct(prompts["inactive"])

    # generate does not forward the last token it writes; the second pass takes the prompt and the whole reply
    replies, written = of["plain", "active"].replies, of["plain", "active"].written
    assert written == NEW * len(replies) == sum(map(len, replies)), "a random model ends no reply"
    active = sum(map(len, prompts["active"]))
    assert of["plain", "active"].tokens == 2 * active + written + (written - len(replies))
    # nor does the engine forward a last token that does not belong to the sentence
    most = distinct(prompts["active"]) + written
    assert most - len(replies) <= of["engine", "active"].tokens <= most

    both = of["engine", "active+inactive"]
    assert both.tokens - of["engine", "active"].tokens == (
        distinct(prompts["active"] + prompts["inactive"]) - distinct(prompts["active"])
    )
    assert both.replies[: len(replies)] == replies
    printed = capsys.readouterr().out
    assert f"{len(replies)} of {len(replies)} have the same tokens" in printed
    assert "| active+inactive, plain loop / engine" in printed and "2 threads" in printed
    assert of["plain, once more", "active"].tokens == active
    every = 3 * active + inactive + written + (written - len(replies))
    assert f"| active+inactive, plain loop, 3 passes          | {every:,} |" in re.sub(
        " +(?=[0-9])", " ", printed
    )
    assert both.floor == distinct(prompts["active"] + prompts["inactive"]) + written


def test_preparation_counts_distinct_tokens_and_gives_the_same_means(model, results, capsys):
    assert bench_engine.main(["--model", model, "--part", "prep", "--sentences", "4"]) == 0
    prompts = lengths(model, task="prep", sentences=4)
    engine, plain = (results[side, "prep", 4, False] for side in ("engine", "plain"))
    assert engine.tokens == distinct(prompts) < plain.tokens == sum(map(len, prompts))
    assert plain.calls == 4
    _, worst = agreement(engine, plain)
    assert 0 < worst < 1e-4
    assert f"difference of the mean states: {worst:.1e}" in capsys.readouterr().out


def test_memory_is_measured_in_a_process_of_its_own(model):
    result = bench_engine.spawn(Cell("plain, all kept", "prep", model, sentences=3))
    assert result.pooled.shape == (3, 4, 32)
    assert result.tokens == sum(map(len, lengths(model, task="prep", sentences=3)))
    assert result.peak > 0


def test_the_memory_part_names_each_side_at_three_sizes(model, results, capsys):
    assert bench_engine.main(["--model", model, "--part", "memory", "--sentences", "2"]) == 0
    sizes = {
        side: [n for s, _, n, _ in results if s == side] for side in ("engine", "plain", "plain, all kept")
    }
    assert sizes == {"engine": [1, 2, 4, 4], "plain": [2], "plain, all kept": [1, 2, 4]}
    kept, once = (results[side, "prep", 2, False].pooled for side in ("plain, all kept", "plain"))
    np.testing.assert_array_equal(kept, once)
    assert "beyond output" in capsys.readouterr().out


def test_the_plain_loop_reads_the_sentence_and_not_the_score_after_it(tiny_lm):
    ids = torch.arange(20, 30)
    texts = ["", "I", "I left.", "I left. [Score:"]
    loop = PlainLoop(tiny_lm.model, lambda ids: texts[min(len(ids), 3)], frozenset({1}))
    sampling = Sampling(6, rule=before_score)
    got = loop.write(Request(ids.numpy(), reply=sampling), sampling)
    whole = ids.tolist()
    for _ in range(6):
        whole.append(int(tiny_lm.model(torch.tensor([whole])).logits[0, -1].argmax()))
    assert got.written == 6 and got.reply_ids == whole[10:13]
    states = tiny_lm.model(torch.tensor([whole]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(got.pooled[0], states[1][0, 10:12].mean(0), rtol=1e-4)


def test_agreement_leaves_out_replies_that_differ_and_the_last_layer():
    def result(pooled, replies):
        return Result(1, 1, 1, 1, 0, np.array(pooled, np.float32), replies, 0, 0, 1, "float32")

    plain = result([[[3, 4], [0, 1]], [[1, 0], [0, 1]], [[1, 1], [0, 1]]], [[7], [8], []])
    engine = result([[[3, 3], [5, 5]], [[9, 9], [9, 9]], [[1, 1], [9, 9]]], [[7], [9], []])
    assert agreement(engine, plain) == (1, pytest.approx(1 / 5))


def test_a_table_lines_up_names_left_and_numbers_right():
    assert table(["", "tokens"], [["plain", "1,395"], ["engine", "47"]]).splitlines() == [
        "|        | tokens |",
        "| ------ | -----: |",
        "| plain  |  1,395 |",
        "| engine |     47 |",
    ]


def test_too_many_sentences_are_one_line_of_error(model, results, capsys):
    assert bench_engine.main(["--model", model, "--part", "prep", "--sentences", "99999"]) == 2
    assert "99999 sentences are needed" in capsys.readouterr().err
