"""The checker passes the shipped sets and notices what it is there to notice; the comparison runs."""

from __future__ import annotations

import csv

import numpy as np
import pytest

import data.check
from analysis.studies.datasets.flags import present
from data import load
from data.check import Rules, check
from data.load import SHIPPED, Dataset, read_dataset
from tasks import compare_datasets

WORDS = "amber basil cedar delta ember fjord grove haven inlet jetty knoll ledge maple north ochre".split()


def made(labels: list[int], sentences: list[str], groups: list[int] | None = None) -> Dataset:
    """Return a dataset under a key that has rules of its own."""
    ids = [f"r{i}" for i in range(len(labels))]
    return Dataset("made", ids, sentences, np.array(labels), np.array(groups or range(len(labels))))


@pytest.fixture
def pairs(monkeypatch) -> tuple[list[int], list[str], list[int]]:
    """100 random pairs that differ in one word, of equal length in both classes."""
    monkeypatch.setitem(data.check.RULES, "made", Rules(200, (3, 12)))
    rng = np.random.default_rng(0)
    sentences, groups = [], []
    for group in range(100):
        words = [f"{WORDS[i]}{rng.integers(100)}" for i in rng.permutation(len(WORDS))[:6]]
        for ending in rng.permutation(["aaaa", "bbbb"]):
            sentences.append(" ".join([*words, ending]))
            groups.append(group)
    return [0, 1] * 100, sentences, groups


@pytest.mark.parametrize("key", SHIPPED)
def test_a_shipped_set_breaks_no_rule(key):
    found = check(read_dataset(key))
    assert found.violations == [] and len(found.figures) >= 10


def test_good_pairs_break_no_rule(pairs):
    labels, sentences, groups = pairs
    found = check(made(labels, sentences, groups))
    assert found.violations == []
    assert found.figures["sentences of label 0 / 1"] == "100 / 100" and found.figures["groups"] == "100"


def test_too_few_and_unbalanced_sentences_are_noticed(pairs):
    labels, sentences, groups = pairs
    found = check(made([*labels[:-2], 1], sentences[:-1], groups[:-1]))
    assert any("not balanced" in v for v in found.violations)
    assert "199 sentences, 200 are needed" in found.violations


def test_repeats_and_near_duplicates_across_groups_are_noticed(pairs):
    labels, sentences, groups = pairs
    sentences[10] = sentences[0].upper()
    found = check(made(labels, sentences, groups))
    assert "1 sentences are there twice" in found.violations
    assert any("near-duplicates in different groups: r0 and r10" in v for v in found.violations)


def test_lengths_that_give_the_label_are_noticed(pairs):
    labels, sentences, groups = pairs
    longer = [s + " and much more" * label for s, label in zip(sentences, labels, strict=True)]
    found = check(made(labels, longer, groups))
    assert any("lengths alone give the label" in v for v in found.violations)
    assert found.figures["probe on lengths"] == "100.0%"


def test_the_command_exits_with_1_on_a_violation_and_2_on_a_bad_key(pairs, monkeypatch, capsys):
    labels, sentences, groups = pairs
    monkeypatch.setattr(
        data.check, "read_dataset", lambda key: made(labels[:-1], sentences[:-1], groups[:-1])
    )
    assert data.check.main(["made"]) == 1
    assert "VIOLATION" in capsys.readouterr().out
    monkeypatch.undo()
    assert data.check.main(["made"]) == 2
    assert "unknown dataset 'made'" in capsys.readouterr().err


def test_datasets_are_compared_by_one_command(tiny_folder, tmp_path, capsys):
    argv = ["--model", str(tiny_folder), "--results", str(tmp_path), "--n_axis", "40", "--n_trial", "40"]
    assert compare_datasets.main([*argv, "--keys", "commonsense", "emotion"]) == 0
    assert "emotion" in capsys.readouterr().out
    (table,) = tmp_path.rglob("datasets.csv")
    rows = list(csv.DictReader(table.open()))
    assert [row["layer"] for row in rows] == ["0", "1", "2", "3"]
    assert all(0 <= float(row["commonsense"]) <= 1 for row in rows)
    assert table.with_suffix(".png").stat().st_size > 5000


def test_a_dry_comparison_prepares_nothing_and_shards_split_the_datasets(tiny_folder, tmp_path, capsys):
    argv = ["--model", str(tiny_folder), "--results", str(tmp_path), "--n_axis", "40", "--n_trial", "40"]
    argv += ["--keys", "commonsense", "emotion"]
    assert compare_datasets.main([*argv, "--dry_run"]) == 0
    assert capsys.readouterr().out.split("preparation")[1].split()[:2] == ["2", "0"]
    assert not list(tmp_path.iterdir())
    assert compare_datasets.main([*argv, "--shard", "2/2"]) == 0
    assert [path.parent.name for path in tmp_path.rglob("axes_layer3.pkl")] == ["emotion"]
    assert not list(tmp_path.rglob("datasets.*")) and "shard 2/2 is done" in capsys.readouterr().err
    assert compare_datasets.main(argv) == 0
    told = capsys.readouterr()
    assert "preparation: 1 new, 1 kept" in told.err and "emotion" in told.out


def test_sets_that_are_not_there_are_left_out_and_named(monkeypatch, tmp_path, caplog):
    for key in ("commonsense", "emotion"):
        (tmp_path / key).symlink_to(load.DATA_DIR / key)
    monkeypatch.setattr(load, "DATA_DIR", tmp_path)
    keys = ("commonsense", "published/emotion", "emotion")
    assert present(keys) == ["commonsense", "emotion"]
    assert "python -m data.download emotion" in caplog.text
