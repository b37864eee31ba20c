"""Datasets are read completely or refused; the split is balanced, disjoint and seeded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.load
from analysis.base.errors import UserError
from analysis.base.seeds import fingerprint
from data.balance import balanced_halves
from data.download import blob_id
from data.formats import PUBLISHED
from data.load import SHIPPED, Dataset, load_dataset, make_dataset, read_dataset, split_dataset
from data.sources import SOURCES
from tests.conftest import SHARED

CSV = 'id,group,sentence,label\na,1,"First, this.",0\nb,1,Second.,1\n'
JSONL = '{"sentence": "First, this.", "label": 0}\n{"sentence": "Second.", "label": 1}\n'
ANSWERS = "1 / Yes. / sycophancy=1 / agree=1\n2 / No. / sycophancy=0 / agree=0\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty data/ folder."""
    monkeypatch.setattr(data.load, "DATA_DIR", tmp_path)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    """Write files; ``sentences_csv`` is sentences.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / ".".join(name.rsplit("_", 1))).write_text(content, encoding="utf-8")


def write_dataset(folder: Path, rows: Iterable[str], name: str = "small") -> str:
    """Write ``rows`` as data set custom/<name> below ``folder`` and return its key."""
    write(folder / "custom" / name, sentences_csv="\n".join(rows) + "\n", README_md="Made up.")
    return f"custom/{name}"


def dataset(labels: Iterable[int], groups: Iterable[int] | None = None) -> Dataset:
    """Return sentences with these labels, in groups of their own unless given."""
    labels = np.array(list(labels))
    groups = np.arange(len(labels)) if groups is None else np.array(list(groups))
    names = [f"s{i}" for i in range(len(labels))]
    return Dataset("made/up", names, names, labels, groups)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "key",
    ["comonsense", "", "published", "published/moral", "published/", "custom", "custom/", "custom/..",
     "custom/.", "custom/../commonsense", "custom/a/b", "/etc", "../commonsense", "Commonsense"],
)  # fmt: skip
def test_an_unknown_dataset_lists_all_choices(key):
    with pytest.raises(UserError) as caught:
        read_dataset(key)
    assert f"unknown dataset {key!r}" in str(caught.value)
    for choice in (*SHIPPED, *(f"published/{name}" for name in SOURCES), "custom/<name>"):
        assert choice in str(caught.value)


def test_rows_become_arrays_and_numbered_groups(tmp_path):
    rows = [("a", "x", "A.", 0), ("b", "y", "B.", 1), ("c", "x", "C.", 1)]
    found = make_dataset("k", rows, tmp_path)
    assert (found.key, found.ids, found.sentences) == ("k", ["a", "b", "c"], ["A.", "B.", "C."])
    assert found.labels.tolist() == [0, 1, 1] and found.groups.tolist() == [0, 1, 0]
    assert found.labels.dtype == found.groups.dtype == np.int64
    with pytest.raises(UserError, match="holds no sentences"):
        make_dataset("k", [], tmp_path)


ROWS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("ABCD")), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_ids_and_sentences_must_be_unique(pairs):
    rows = [(name, name, sentence, 0) for name, sentence in pairs]
    if all(len(set(column)) == len(pairs) for column in zip(*pairs, strict=True)):
        assert make_dataset("k", rows, Path("place")).ids == [name for name, _ in pairs]
    else:
        with pytest.raises(UserError, match=r"^place: (id|sentence) '\w' stands there twice"):
            make_dataset("k", rows, Path("place"))


@pytest.mark.parametrize(
    "files",
    [{"sentences_csv": CSV}, {"sentences_jsonl": JSONL}, {"0_txt": "First, this.\n", "1_bad_txt": "Second."}],
)
def test_a_dataset_of_ones_own_is_read_in_any_of_three_formats(folder, files):
    write(folder / "custom" / "mine", README_md="From me.", **files)
    found = read_dataset("custom/mine")
    assert (found.key, found.sentences) == ("custom/mine", ["First, this.", "Second."])
    assert found.labels.tolist() == [0, 1]


def test_a_dataset_of_ones_own_that_is_not_there_names_the_command(folder):
    with pytest.raises(UserError, match=r"no folder .*yours: run `python -m data\.template yours`"):
        read_dataset("custom/yours")


def test_a_dataset_of_ones_own_needs_a_readme(folder):
    write(folder / "custom" / "mine", sentences_csv=CSV)
    with pytest.raises(UserError, match=r"mine needs a README\.md that says where"):
        read_dataset("custom/mine")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"must hold one of sentences\.csv, sentences\.jsonl, or two files .* it has none$"),
        ({"sentences_csv": CSV, "sentences_jsonl": JSONL}, r"it has sentences\.csv, sentences\.jsonl$"),
        ({"sentences_csv": CSV, "1_txt": "A", "0_txt": "B"}, r"it has sentences\.csv, 0\.txt, 1\.txt$"),
        ({"0_txt": "A"}, r"must hold one file 1\*\.txt with the sentences of label 1$"),
        ({"0_txt": "A", "0a_txt": "B", "1_txt": "C"}, r"must hold one file 0\*\.txt"),
        ({"0_txt": "A", "1_txt": "A"}, r"sentence 'A' stands there twice"),
        ({"sentences_csv": CSV + "c,2,Third.,2\n"}, r"sentences\.csv:4: label '2' must be 0 or 1"),
    ],
)
def test_a_folder_with_no_or_several_or_bad_files_is_refused(folder, files, message):
    write(folder / "custom" / "mine", README_md="From me.", **files)
    with pytest.raises(UserError, match=message) as caught:
        read_dataset("custom/mine")
    assert str(folder / "custom" / "mine") in str(caught.value)


# ---------------------------------------------------------------- the published files


@pytest.mark.parametrize("name", SOURCES)
def test_a_published_set_that_is_not_there_names_the_command(folder, name):
    with pytest.raises(UserError, match=rf"is not there: run `python -m data\.download {name}`.*--from"):
        read_dataset(f"published/{name}")


def test_a_published_set_needs_all_its_files(folder):
    write(folder / "published" / "emotion", happiness_json='["Ah."]')
    with pytest.raises(
        UserError, match=r"sadness\.json is not there: run `python -m data\.download emotion`"
    ):
        read_dataset("published/emotion")
    write(folder / "published" / "emotion", sadness_json='["Oh."]')
    assert read_dataset("published/emotion").labels.tolist() == [1, 0]


def test_repeated_sentences_count_once_and_never_when_their_labels_differ(folder):
    more = "3 / Yes. / sycophancy=1 / agree=0\n4 / Hm. / sycophancy=1 / agree=1\n"
    differs = "5 / Hm. / sycophancy=0 / agree=1\n"
    write(folder / "published" / "sycophancy", sycophancy_agreement_txt=ANSWERS + more + differs)
    found = read_dataset("published/sycophancy")
    assert found.ids == ["1", "2"] and found.sentences == ["Yes.", "No."]


COUNTS = {  # rows, distinct sentences after white space is evened out
    "cm_test.csv": (2109, 2109),
    "animals_true_false.csv": (1008, 1006),
    "cities_true_false.csv": (1458, 1438),  # 1440 with white space as it is
    "companies_true_false.csv": (1200, 1200),
    "elements_true_false.csv": (930, 930),
    "facts_true_false.csv": (613, 611),
    "generated_true_false.csv": (245, 244),
    "inventions_true_false.csv": (876, 876),
    "happiness.json": (750, 740),
    "sadness.json": (750, 749),
    "sycophancy_agreement.txt": (2400, 2345),
}


@pytest.mark.parametrize(
    "source",
    sorted({s for files in SOURCES.values() for s in files if s.name in COUNTS}, key=str),
    ids=lambda s: s.name,
)
def test_a_published_file_is_the_one_named_and_read_completely(source):
    path = SHARED / source.key / source.name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    assert blob_id(path) == source.blob
    rows = PUBLISHED[source.key](path)
    assert (len(rows), len({row[2] for row in rows})) == COUNTS[source.name]
    assert {row[3] for row in rows} == ({0, 1} if source.key != "emotion" else {int("happi" in source.name)})
    if source.key == "sycophancy":
        assert len(rows) == sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())


# ---------------------------------------------------------------- fingerprints


def test_the_fingerprint_follows_the_content_and_the_split():
    a, b = dataset([0, 1, 1, 0]), dataset([0, 1, 0, 1])
    assert a.fingerprint == dataset([0, 1, 1, 0]).fingerprint != b.fingerprint
    assert a.fingerprint != dataset([0, 1, 1, 0], [0, 0, 1, 2]).fingerprint
    splits = [split_dataset(found, 2, 2, seed).fingerprint for found in (a, b) for seed in range(9)]
    assert splits[0] == split_dataset(a, 2, 2, 0).fingerprint and 2 < len(set(splits)) <= 18


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


def possible(counts, sizes):
    """Whether whole groups make both halves: every way to give each group to a half or to none."""
    for choice in itertools.product((-1, 0, 1), repeat=len(counts)):
        halves = [counts[np.array(choice) == half].sum(axis=0) for half in (0, 1)]
        if all((half == size // 2).all() for half, size in zip(halves, sizes, strict=True)):
            return True
    return False


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=6),
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
def test_a_split_is_found_wherever_there_is_one(groups, first, second, seed):
    counts, sizes = np.array(groups), (2 * first, 2 * second)
    halves = balanced_halves(counts, sizes, np.random.default_rng(seed))
    assert bool(halves) == possible(counts, sizes)
    for half, size in zip(halves, sizes, strict=False):
        assert counts[half].sum(axis=0).tolist() == [size // 2] * 2
    taken = np.concatenate(halves) if halves else np.zeros(0)
    assert len(set(taken.tolist())) == len(taken)


@pytest.mark.parametrize("seed", range(20))
def test_the_published_pairs_and_singles_of_commonsense_fill_the_default_split(seed):
    source = next(s for s in SOURCES["commonsense_test"])
    path = SHARED / source.key / source.name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    found = make_dataset("published/commonsense_test", PUBLISHED["commonsense_test"](path), path)
    check_split(found, 600, 600, seed)
    other = split_dataset(found, 600, 600, seed + 1)
    assert split_dataset(found, 600, 600, seed).fingerprint != other.fingerprint


def test_pairs_fill_a_split_that_single_sentences_cannot():
    labels = np.concatenate([np.zeros(300), np.tile([0, 1], 400)]).astype(int)
    groups = np.concatenate([np.arange(300), 300 + np.repeat(np.arange(400), 2)])
    found = dataset(labels, groups)  # ones come in pairs only, so that no single sentence fits
    check_split(found, 400, 400, 0)
    with pytest.raises(UserError, match="too few for n_axis 402"):
        split_dataset(found, 402, 400, 0)


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


@pytest.mark.parametrize("key", SHIPPED)
def test_a_shipped_set_is_balanced_and_fills_the_default_split(key):
    found = read_dataset(key)
    assert np.bincount(found.labels).tolist() == [len(found.ids) // 2] * 2
    assert len(found.ids) >= 1200
    check_split(found, 600, 600, seed=42)


@pytest.mark.parametrize("key", SHIPPED)
def test_a_compact_split_keeps_both_halves_and_nothing_else(key):
    split = load_dataset(key, 1, 40, 20)
    small = split.compact()
    assert len(small.dataset.sentences) == 60 and small.dataset.key == key
    for old, new in ((split.axis_rows, small.axis_rows), (split.trial_rows, small.trial_rows)):
        for column in ("ids", "sentences", "labels", "groups"):
            whole, used = (np.array(getattr(s.dataset, column)) for s in (split, small))
            assert whole[old].tolist() == used[new].tolist()
    whole = split_dataset(read_dataset(key), 40, 20, 1)
    assert whole.fingerprint == split.fingerprint == load_dataset(key, 1, 40, 20).fingerprint
    assert (
        small.fingerprint == small.compact().fingerprint != load_dataset(key, 2, 40, 20).compact().fingerprint
    )
