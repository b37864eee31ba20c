"""The sentence of a reply ends before the score that a model writes behind it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.experiments.score_text import before_score

PIECES = [
    "I", " went", " [", "[", "Sc", "Score", "ore", " score", ":", "=", "1", "]", " ", "\n", "s", " (", "*",
    "e", ".",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence", "cut"),
    [
        ("I went home.", "I went home.", False),
        ("I went home. [Score: 1]", "I went home.", True),
        ("I went home. Score: 1", "I went home.", True),
        ("I went home. [score:", "I went home.", True),
        ("I went home. (Score = 0) and on", "I went home.", True),
        ("I went home.\n\n**SCORE: 1**", "I went home.", True),
        ("  I went home. \n", "I went home.", False),
        ("I saw the scoreboard: it was off.", "I saw the scoreboard: it was off.", False),
        ("The score was tied.", "The score was tied.", False),
        ("We underscore: no.", "We underscore: no.", False),
        ("I kept the [brackets] (here).", "I kept the [brackets] (here).", False),
        ("[Score: 1] I went home.", "", True),
        ("Score:", "", True),
        (" \n ", "", False),
        ("", "", False),
        ("I went home. [Score 1]", "I went home.", True),
        ("I won. [scored]", "I won. [scored]", False),
        *((f"I went home. [{'Score'[:n]}", "I went home.", True) for n in (0, 1, 2, 4, 5)),  # broken off
        ("I went home. [Sco", "I went home.", True),
    ],
)
def test_a_score_text_is_cut_and_other_text_is_kept(text, sentence, cut):
    start, stop, was_cut = before_score(text)
    assert (text[start:stop], was_cut) == (sentence, cut)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=24))
def test_what_is_held_back_at_the_end_is_blanks_or_the_start_of_a_score(pieces):
    text = "".join(pieces)
    _, held, _ = before_score(text, final=False)
    _, stop, _ = before_score(text, final=True)
    # "score" and its beginnings, with brackets and blanks around
    assert text[held:stop].strip(" \n[(*").lower().rstrip() in {"", *("score"[:n] for n in range(1, 6))}
