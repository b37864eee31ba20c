"""Every parser returns what was written, or refuses the whole file with its line; never anything else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.base.errors import UserError
from data import formats
from data.formats import COLUMNS, LONGEST_LINE, Row, group_neighbours, subject
from data.load import make_dataset

OWN = "id,group,sentence,label\n"
ETHICS = "label,input,is_short,edited\n"
AZARIA = "statement,label\n"


def class_file(path: Path) -> list[Row]:
    """Parse the folder of ``path``, which is its file of label 0."""
    (path.parent / "1.txt").write_text("One.\n")
    return formats.class_files(path.parent)[:-1]


PARSERS: dict[str, tuple[Callable[[Path], list[Row]], str, str]] = {
    "csv": (formats.sentences_csv, "sentences.csv", OWN),
    "jsonl": (formats.sentences_jsonl, "sentences.jsonl", ""),
    "texts": (class_file, "0.txt", ""),
    "commonsense": (formats.commonsense, "cm.csv", ETHICS),
    "true_false": (formats.true_false, "tf.csv", AZARIA),
    "sycophancy": (formats.sycophancy, "syc.txt", ""),
    "emotion": (formats.emotion, "happiness.json", ""),
}  # name: parser, file name, header

GOOD: dict[str, tuple[str, list[Row]]] = {
    "csv": (
        OWN + 'a,1,"First, ""this"".",0\n\nb,,  Café \t x. , 1 \n',
        [("a", "1", 'First, "this".', 0), ("b", "b", "Café x.", 1)],
    ),
    "jsonl": (
        '{"sentence": " Café  x.", "label": 0}\n\n{"id": 7, "group": "g", "sentence": "B,", "label": "1"}\n',
        [("1", "1", "Café x.", 0), ("7", "g", "B,", 1)],
    ),
    "texts": ("Café, x.\n\n  B. \n", [("0-1", "0-1", "Café, x.", 0), ("0-3", "0-3", "B.", 0)]),
    "commonsense": (
        ETHICS + '0,"I ate, then I slept.",True,False\n1,Ah.,False,True\n1,"I ate, then I hid.",True,True\n',
        [("cm-2", "cm-2", "I ate, then I slept.", 0), ("cm-4", "cm-2", "I ate, then I hid.", 1)],
    ),
    "true_false": (
        AZARIA + '"The fox has fur, too.",1\nFox is a fish. ,0\n',
        [("tf-2", "tf fox", "The fox has fur, too.", 1), ("tf-3", "tf fox", "Fox is a fish.", 0)],
    ),
    "sycophancy": (
        "7 / I agree, 1 / 2 times. / sycophancy=1 / agree=1\n9 / No. / sycophancy=0 / agree=1\n",
        [("7", "7", "I agree, 1 / 2 times.", 1), ("9", "9", "No.", 0)],
    ),
    "emotion": (
        '["Café, x.",\n "B."]\n',
        [("happiness-0", "happiness-0", "Café, x.", 1), ("happiness-1", "happiness-1", "B.", 1)],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("formats")


def parse(kind: str, content: str | bytes, folder: Path) -> list[Row]:
    """Write ``content`` under the file name of ``kind`` and parse it."""
    parser, name, _ = PARSERS[kind]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return parser(folder / name)


# ---------------------------------------------------------------- good files


@pytest.mark.parametrize("kind", PARSERS)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_good_file_is_read_whatever_its_line_ends_and_mark(folder, kind, ends, mark):
    content, rows = GOOD[kind]
    assert parse(kind, mark + content.replace("\n", ends), folder) == rows


def test_columns_may_stand_in_any_order_among_others(folder):
    content = "note,label, sentence ,group,id\n?,1,Hi.,g,a\n"
    assert parse("csv", content, folder) == [("a", "g", "Hi.", 1)]


def test_files_other_than_happiness_have_label_0(tmp_path):
    (tmp_path / "sadness.json").write_text('["Oh."]')
    assert formats.emotion(tmp_path / "sadness.json") == [("sadness-0", "sadness-0", "Oh.", 0)]


# ---------------------------------------------------------------- bad files


BAD = [
    ("csv", "id,group,sentence\na,1,Hi.\n", r":1: the header must hold id, group, sentence, label"),
    ("csv", "", r":1: the header must hold"),
    ("csv", '"id,group', r":1: unexpected end"),
    ("csv", OWN.replace("label", "label,id"), r":1: the header must hold .* once each"),
    ("csv", OWN + "a,1,One.,0\nb,1,Two.,2\n", r":3: label '2' must be 0 or 1"),
    ("csv", OWN + "a,1,One.,0\nb,1,Two.,\n", r":3: label '' must be 0 or 1"),
    ("csv", OWN + "a,1,One.,0\nb,1,Well, two.,1\n", r":3: .*quote commas"),
    ("csv", OWN + "a,1,One.,0\nb,1,Two.\n", r":3: the row has not the 4 fields"),
    ("csv", OWN + "a,1,One.,0\nb,1, ,1\n", r":3: the id or the sentence is empty"),
    ("csv", OWN + "a,1,One.,0\n ,1,Two.,1\n", r":3: the id or the sentence is empty"),
    ("csv", OWN + 'a,1,One.,0\nb,1,"Two.,1\nc,1,Three.,1\n', r":3: unexpected end"),
    ("csv", OWN + 'a,1,One.,0\nb,1,"Two" x.,1\n', r":3: ',' expected"),
    ("csv", OWN + "a,1,One.\0,0\n", r":2: the line holds a NUL"),
    ("csv", (OWN + "a,1,Café.,1\n").encode("latin-1"), r" is not UTF-8 text \(byte 31\)"),
    ("csv", (OWN + "a,1,Two.,1\n").encode("utf-16"), r" is not UTF-8 text \(byte 0\)"),
    ("jsonl", '{"sentence": "A", "label": 0}\n{"sentence": "B"}\n', r":2: must be an object with"),
    ("jsonl", '{"sentence": 1, "label": 0}\n', r":1: must be an object with"),
    ("jsonl", '["A", 0]\n', r":1: must be an object with"),
    ("jsonl", '\n{"sentence": "A", "label": 0\n', r":2: not JSON"),
    ("jsonl", '{"sentence": "A", "label": true}\n', r":1: label 'True' must be"),
    ("jsonl", '{"sentence": "A", "label": 1.0}\n', r":1: label '1.0' must be"),
    ("jsonl", '{"sentence": "A", "label": 0, "group": null}\n', r":1: id and group must be"),
    ("jsonl", '{"sentence": "A", "label": 0, "id": [1]}\n', r":1: id and group must be"),
    ("jsonl", '{"sentence": "A\\u0000", "label": 0}\n', r":1: the row holds a NUL"),
    ("jsonl", '{"sentence": "A\\ud800", "label": 0}\n', r":1: .*half of a surrogate pair"),
    ("jsonl", '{"sentence": "A", "label": %s}\n' % ("[" * 9000), r":1: not JSON"),
    ("jsonl", '{"sentence": "A", "label": %s}\n' % ("9" * 5000), r":1: not JSON"),
    ("texts", "One.\nTwo\0.\n", r"0\.txt:2: the line holds a NUL"),
    ("commonsense", ETHICS + "0,Hi.,True,False\n1,Ho.,yes,False\n", r":3: is_short 'yes' must be True or"),
    ("commonsense", ETHICS + "0,Hi.,True,False\n3,Ho.,True,False\n", r":3: label '3' must be 0 or 1"),
    ("commonsense", "label,input\n0,Hi.\n", r":1: the header must hold label, input, is_short, edited"),
    ("true_false", AZARIA + "A is b.,1\nA is c.,true\n", r":3: label 'true' must be 0 or 1"),
    ("true_false", AZARIA + "A is b.,1\nA, b and c.,1\n", r":3: .*quote commas"),
    ("sycophancy", "1 / A. / sycophancy=1 / agree=1\n2 / B. / sycophancy=2 / agree=1\n", r":2: must be"),
    ("sycophancy", "1 / A. / sycophancy=1\n", r":1: must be `id / sentence"),
    ("emotion", '{"a": "b"}', r" must be a JSON list of sentences"),
    ("emotion", '["A", 1]', r" must be a JSON list of sentences"),
    ("emotion", '["A", ""]', r"\[1\]: the id or the sentence is empty"),
    ("emotion", '["A"', r": not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "content", "message"), BAD)
def test_a_bad_file_is_refused_by_name_and_line(folder, kind, content, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(kind, content, folder)
    assert str(caught.value).startswith(str(folder / PARSERS[kind][1]))


@pytest.mark.parametrize("kind", PARSERS)
def test_a_line_too_long_for_a_sentence_is_refused(folder, kind):
    content, rows = GOOD[kind]
    assert len(parse(kind, content.replace("Café", "Café" + "é" * (LONGEST_LINE - 200)), folder)) == len(rows)
    with pytest.raises(UserError, match=rf":\d: .*more than {LONGEST_LINE} characters"):
        parse(kind, content + "é" * (LONGEST_LINE + 1), folder)


@pytest.mark.parametrize("kind", [kind for kind in PARSERS if kind != "texts"])
def test_a_missing_file_is_named(tmp_path, kind):
    with pytest.raises(UserError, match=r"nowhere\.x cannot be read: No such file"):
        PARSERS[kind][0](tmp_path / "nowhere.x")


# ---------------------------------------------------------------- any file

PIECES = [
    "\n", "\r\n", "\r", ",", '"', '""', " ", "\t", "0", "1", "2", "True", "False", "a", "b", "word", "Café",
    "\ufeff", "\0", " / ", "sycophancy=1", "sycophancy=0 / agree=1", "[", "]", "{", "}", ":", '"id":"',
    '"sentence":"x","label":1', "\\u0000", "\\ud800", "\\", "null", "NaN", "\u2028", "\x85", "\x1c", "/",
    '{"sentence":"a","label":0}\n', "7 / b / sycophancy=1 / agree=0\n", "a,1,b,0\n", "label", "statement",
    *COLUMNS,
]  # fmt: skip
SCRAPS = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from(PIECES), max_size=40).map(lambda pieces: "".join(pieces).encode()),
)


@pytest.mark.parametrize("kind", PARSERS)
@settings(max_examples=100, deadline=None)
@given(body=SCRAPS, with_header=st.booleans())
def test_any_bytes_are_rows_or_one_error(folder, kind, body, with_header):
    try:
        rows = parse(kind, (PARSERS[kind][2].encode() if with_header else b"") + body, folder)
        found = make_dataset("any", rows, folder)
    except UserError as error:
        assert str(folder) in str(error)
        return
    assert found.sentences == [" ".join(s.split()) for s in found.sentences] and all(found.sentences)
    assert set(found.labels.tolist()) <= {0, 1} and all(found.ids)
    for text in (*found.ids, *found.sentences):
        assert "\0" not in text and text.encode()  # can be stored and printed


HEADERS = st.permutations([*COLUMNS, "note"]) | st.lists(st.sampled_from([*COLUMNS, "note"]), max_size=6)
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0\ufeff"), max_size=20)  # one line
NAMES = st.text('ab1é ,"', max_size=4)
LABELS = st.sampled_from([*"01010101", " 1", "2", ""])
ANY = st.text(st.characters(exclude_categories=()), max_size=12)


def expected(rows: list[tuple[str, str, str, str]]) -> list[Row] | None:
    """Return the rows as a parser must return them; None if one of them is wrong."""
    clean = [(n.strip(), g.strip() or n.strip(), " ".join(s.split()), k.strip()) for n, g, s, k in rows]
    good = all(n and s and k in ("0", "1") and can_store(n + g + s) for n, g, s, k in clean)
    return [(n, g, s, int(k)) for n, g, s, k in clean] if good else None


def can_store(text: str) -> bool:
    """Say whether ``text`` is text: no NUL, no half of a surrogate pair."""
    return "\0" not in text and text.encode(errors="ignore").decode() == text


def check(kind: str, content: str, folder: Path, rows: list[Row] | None) -> None:
    if rows is None:
        with pytest.raises(UserError):
            parse(kind, content, folder)
    else:
        assert parse(kind, content, folder) == rows


def as_csv(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([header, *rows])
    return stream.getvalue()


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(NAMES, NAMES, st.text(max_size=20), LABELS), max_size=4))
def test_rows_written_as_csv_come_back_or_are_refused(folder, rows):
    want = None if any("\0" in row[2] for row in rows) else expected(rows)
    check("csv", as_csv(COLUMNS, rows), folder, want)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(NAMES, NAMES, ANY, LABELS), max_size=4))
def test_rows_written_as_json_lines_come_back_or_are_refused(folder, rows):
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows]
    check("jsonl", "\n".join(lines), folder, expected([tuple(json.loads(line).values()) for line in lines]))


@settings(max_examples=100, deadline=None)
@given(sentences=st.lists(ANY, max_size=5), indent=st.sampled_from([None, 1]))
def test_a_written_json_list_comes_back_or_is_refused(folder, sentences, indent):
    text = json.dumps(sentences, indent=indent)
    rows = [(f"happiness-{i}", "", s, "1") for i, s in enumerate(json.loads(text))]
    check("emotion", text, folder, expected(rows))


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(PLAIN, st.sampled_from("012")), max_size=4))
def test_written_lines_come_back_or_are_refused(folder, rows):
    lines = [f"{i} / {s} / sycophancy={k} / agree=0" for i, (s, k) in enumerate(rows)]
    answers = [(str(i), "", s, k) for i, (s, k) in enumerate(rows)]
    check("sycophancy", "\n".join(lines), folder, expected(answers))
    named = [(f"0-{i}", "", s, "0") for i, (s, _) in enumerate(rows, 1) if s.strip()]
    check("texts", "\n".join(s for s, _ in rows), folder, expected(named))


@settings(max_examples=100, deadline=None)
@given(header=HEADERS, width=st.integers(3, 6))
def test_wrong_columns_are_refused(folder, header, width):
    good = set(COLUMNS) <= set(header) and len(set(header)) == len(header) == width
    want = [("1", "1", "1", 1)] if good else None
    check("csv", ",".join(header) + "\n" + ",".join("1" * width) + "\n", folder, want)


# ---------------------------------------------------------------- groups


def test_neighbours_that_share_words_are_one_group():
    sentences = ["I fed my cat.", "I hit my cat.", "He hit my cat.", "We sang all night.", "I fed my cat."]
    rows = group_neighbours([(str(i), str(i), s, 0) for i, s in enumerate(sentences)])
    assert [row[1] for row in rows] == ["0", "0", "0", "3", "4"]  # a chain; far apart is not neighbouring


def test_the_subject_of_a_statement_comes_before_its_verb():
    subjects = {
        "The giant anteater uses for walking.": "giant anteater",
        "Oranjestad is a city in Aruba": "oranjestad",
        "An island has a coast.": "island",
        "Meta Platforms has headquarters in Norway.": "meta platforms",
        "Thomas Edison invented the light bulb.": "thomas edison",
        "No verb here": "no verb here",
    }
    assert {statement: subject(statement) for statement in subjects} == subjects
