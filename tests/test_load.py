"""Datasets are read completely or refused with the line; the split is balanced, disjoint and seeded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.load
from data.load import SHIPPED, Dataset, load_dataset, read_sentences, split_dataset
from utils import UserError, fingerprint

HEADER = "id,group,sentence,label\n"
GOOD = HEADER + 'a,1,"First, this.",0\nb,1,Second.,1\n'


def write_dataset(folder: Path, rows: Iterable[str], name: str = "small") -> str:
    """Write ``rows`` as data set custom/<name> below ``folder`` and return its key."""
    path = folder / "custom" / name / "sentences.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return f"custom/{name}"


def dataset(labels: Iterable[int], groups: Iterable[int] | None = None) -> Dataset:
    """Return sentences with these labels, in groups of their own unless given."""
    labels = np.array(list(labels))
    groups = np.arange(len(labels)) if groups is None else np.array(list(groups))
    names = [f"s{i}" for i in range(len(labels))]
    return Dataset("made/up", names, names, labels, groups)


# ---------------------------------------------------------------- reading


def test_a_good_file_is_read(tmp_path):
    path = tmp_path / "sentences.csv"
    path.write_text(GOOD + "c,x,  Third , 1 \n")
    found = read_sentences(path, "k")
    assert found.ids == ["a", "b", "c"]
    assert found.sentences == ["First, this.", "Second.", "Third"]
    assert found.labels.tolist() == [0, 1, 1] and found.groups.tolist() == [0, 0, 1]


def test_a_byte_order_mark_is_accepted(tmp_path):
    path = tmp_path / "sentences.csv"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_sentences(path, "k").ids == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,group,sentence\na,1,Hi.\n", r":1: missing columns label; needed: id, group, sentence, label"),
        ("", r":1: missing columns id, group, sentence, label"),
        (HEADER, r"holds no sentences"),
        (GOOD + "c,2,Third.,2\n", r":4: label '2' must be 0 or 1"),
        (GOOD + "c,2,Third.,\n", r":4: label '' must be 0 or 1"),
        (GOOD + "a,2,Third.,1\n", r"id 'a' stands there twice"),
        (GOOD + "c,2,Second.,0\n", r"sentence 'Second\.' stands there twice"),
        (GOOD + "c,2, Second. ,0\n", r"sentence 'Second\.' stands there twice"),
        (GOOD + "c,2,Well, this.,1\n", r":4: .*quote commas"),
        (GOOD + "c,2,Third.\n", r":4: .*do not match the header"),
        (GOOD + "c,2, ,1\n", r":4: the id or the sentence is empty"),
        (GOOD + ",2,Third.,1\n", r":4: the id or the sentence is empty"),
        (GOOD + 'c,2,"Third.,1\n', r"not a UTF-8 CSV file"),
        ((GOOD + "c,2,Café.,1\n").encode("latin-1"), r"not a UTF-8 CSV file"),
        ((GOOD + "c,2,Third.,1\n").encode("utf-16"), r"not a UTF-8 CSV file"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path, content, message):
    path = tmp_path / "sentences.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message) as caught:
        read_sentences(path, "k")
    assert str(path) in str(caught.value)


def test_an_unknown_dataset_lists_the_choices():
    with pytest.raises(UserError) as caught:
        load_dataset("comonsense")
    assert "unknown dataset 'comonsense'" in str(caught.value)
    for choice in (*SHIPPED, "custom/<name>"):
        assert choice in str(caught.value)


def test_a_dataset_of_ones_own_is_found_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(data.load, "DATA_DIR", tmp_path)
    key = write_dataset(tmp_path, GOOD.splitlines(), "mine")
    assert load_dataset(key).key == key == "custom/mine"
    assert load_dataset(key).sentences == ["First, this.", "Second."]
    missing = tmp_path / "custom" / "yours" / "sentences.csv"
    with pytest.raises(UserError, match="has no file") as caught:
        load_dataset("custom/yours")
    assert str(missing) in str(caught.value)


def test_the_fingerprint_follows_the_content(tmp_path):
    a, b = (dataset([0, 1, 1]), dataset([0, 1, 0]))
    assert a.fingerprint == dataset([0, 1, 1]).fingerprint != b.fingerprint
    assert a.fingerprint != dataset([0, 1, 1], [0, 0, 1]).fingerprint


def test_fingerprints_follow_values_types_and_shapes():
    parts = [[1, 2], [1, "2"], {"a": 1}, np.arange(4), np.arange(4.0), np.arange(4).reshape(2, 2)]
    assert len({fingerprint(part) for part in parts}) == len(parts)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint("ab", "c") != fingerprint("a", "bc")


# ---------------------------------------------------------------- splitting


def check_split(found: Dataset, n_axis: int, n_trial: int, seed: int) -> None:
    split = split_dataset(found, n_axis, n_trial, seed)
    for rows, size in ((split.axis_rows, n_axis), (split.trial_rows, n_trial)):
        assert len(set(rows.tolist())) == len(rows) == size
        assert found.labels[rows].sum() == size // 2
    groups = [set(found.groups[rows].tolist()) for rows in (split.axis_rows, split.trial_rows)]
    assert not groups[0] & groups[1]
    for rows, own in zip((split.axis_rows, split.trial_rows), groups, strict=True):
        whole = np.flatnonzero(np.isin(found.groups, list(own)))
        assert sorted(rows.tolist()) == whole.tolist()  # a group is taken whole or not at all


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 10), st.integers(1, 10), st.integers(0, 5))
def test_the_halves_are_balanced_and_disjoint_with_whole_groups(seed, half_axis, half_trial, spare):
    pairs = half_axis + half_trial + spare  # minimal pairs: one sentence of each label
    found = dataset([0, 1] * pairs, np.repeat(np.arange(pairs), 2))
    check_split(found, 2 * half_axis, 2 * half_trial, seed)


def test_unbalanced_classes_are_split_evenly_too():
    labels = [0] * 70 + [1] * 30
    check_split(dataset(labels), 20, 20, seed=0)
    check_split(dataset(labels, [i // 2 for i in range(100)]), 20, 20, seed=0)


def test_the_split_follows_the_seed():
    found = dataset([0, 1] * 50)
    splits = [split_dataset(found, 20, 20, seed) for seed in (0, 0, 1)]
    assert splits[0].axis_rows.tolist() == splits[1].axis_rows.tolist()
    assert splits[0].trial_rows.tolist() == splits[1].trial_rows.tolist()
    assert splits[0].axis_rows.tolist() != splits[2].axis_rows.tolist()


def test_both_classes_are_needed():
    with pytest.raises(UserError, match=r"'made/up' has sentences of label 1 only"):
        split_dataset(dataset([1] * 50), 10, 10, 0)


@pytest.mark.parametrize(("n_axis", "n_trial"), [(42, 40), (40, 42), (82, 2), (2, 82)])
def test_too_few_sentences_are_an_error(n_axis, n_trial):
    found = dataset([0, 1] * 40)
    check_split(found, 40, 40, 0)
    with pytest.raises(UserError, match=r"40 \+ 40 sentences .* 80 groups, too few .*--config"):
        split_dataset(found, n_axis, n_trial, 0)


@pytest.mark.parametrize("sizes", [(11, 10), (10, 11)])
def test_odd_sizes_are_an_error(sizes):
    with pytest.raises(UserError, match=r"n_(axis|trial) = 11 must be even"):
        split_dataset(dataset([0, 1] * 50), *sizes, 0)


def test_the_commonsense_set_loads_is_balanced_and_fills_the_default_split():
    found = load_dataset("commonsense")
    assert np.bincount(found.labels).tolist() == [len(found.ids) // 2] * 2
    assert len(found.ids) >= 1200
    assert all(s == s.strip() and s for s in found.sentences)
    check_split(found, 600, 600, seed=42)
