"""The skeleton of a dataset of one's own loads as it is, and never replaces anything."""

from __future__ import annotations

import pytest

import data.load
from data.formats import COLUMNS
from data.template import main


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty data/ folder."""
    monkeypatch.setattr(data.load, "DATA_DIR", tmp_path)
    return tmp_path / "custom"


@pytest.mark.parametrize("name", ["mood", "My_set-2", "0"])
def test_the_skeleton_is_made_and_loads(folder, capsys, name):
    assert main([name]) == 0
    assert sorted(p.name for p in (folder / name).iterdir()) == ["README.md", "sentences.csv"]
    assert (folder / name / "README.md").read_text().startswith(f"# {name}\n")
    assert (folder / name / "sentences.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    out = capsys.readouterr().out
    assert str(folder / name / "sentences.csv") in out and f"--dataset custom/{name}\n" in out
    found = data.load.read_dataset(f"custom/{name}")
    assert found.sentences[0] == "I closed the window, since it rained."
    assert found.labels.tolist() == [0, 1] and len(set(found.groups.tolist())) == 1


def test_a_second_call_refuses_to_overwrite(folder, capsys):
    assert main(["mood"]) == 0
    (folder / "mood" / "sentences.csv").write_text("mine")
    (folder / "mood" / "README.md").unlink()
    assert main(["mood"]) == 2
    assert f"error: {folder / 'mood'} exists already: take another name" in capsys.readouterr().err
    assert [p.read_text() for p in (folder / "mood").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a b", "é", "a.b", "a\n", "a\0", "~", "/tmp"])
def test_a_bad_name_is_refused_and_nothing_is_made(folder, capsys, name):
    assert main([name]) == 2
    error = capsys.readouterr().err
    assert error == f"error: name {name!r}: use letters, digits, _ and - only\n"
    assert not folder.exists()
