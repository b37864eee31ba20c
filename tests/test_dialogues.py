"""Conversations in one cache: every turn equals forwarding the whole conversation again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.base.errors import UserError
from analysis.engine.dialogues import Dialogues
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.replies import Sampling
from analysis.engine.trie import build_trie
from analysis.experiments.score_text import before_score
from analysis.process_prompts import Prompter, Turn, sentence_turn
from analysis.studies.closed_loop.prompts import Continued
from tests.conftest import ARCHITECTURES, TEMPLATES, make_model, make_tokenizer

# ---------------------------------------------------------------- one cache


def plain_states(model: torch.nn.Module, ids: np.ndarray, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (T, D) after a block and the last logits, by one pass over everything, without engine code."""
    found = []
    handle = model.base_model.layers[layer].register_forward_hook(
        lambda m, i, out: found.append(out if torch.is_tensor(out) else out[0])
    )
    with torch.no_grad():
        logits = model(torch.tensor(ids[None])).logits[0, -1]
    handle.remove()
    return found[0][0], logits


ENDS_IN_A_SCORE = ("We ", "left", ".", " [", "Sc", "ore", ":")


@pytest.mark.parametrize(("kind", "budget"), list(zip(ARCHITECTURES, (16, 512, 16, 512, 16), strict=True)))
def test_every_turn_equals_forwarding_the_whole_conversation_again(kind, budget, tokenizer, rng):
    model = make_model(ARCHITECTURES[kind])
    tree = PrefixTree(model, tokenizer, budget, packed=True)
    trunk = rng.integers(11, 500, 30)
    openings = [np.concatenate([trunk[:20], rng.integers(11, 500, n)]) for n in (3, 9)] + [trunk, trunk]
    talk = Dialogues(tree, openings, [1, 3], room=400)
    for turn in range(3):
        if turn == 1:  # from here on, replies end in a score text of four tokens
            tree.context.decode = lambda ids: "".join(ENDS_IN_A_SCORE[: len(ids)])
        before = [talk.ids(b) for b in range(4)]
        said = talk.write([Sampling(8, 0.9, (turn, b), before_score) for b in range(4)])
        for b, (reply, mean) in enumerate(said):
            ids = talk.ids(b)
            written = reply.ids[: reply.stop]
            np.testing.assert_array_equal(ids, [*before[b], *written])
            if reply.stop > reply.start:
                for slot, layer in enumerate((1, 3)):
                    states, _ = plain_states(model, ids, layer)
                    own = states[len(before[b]) + reply.start : len(ids)].mean(0).numpy()
                    np.testing.assert_allclose(mean[slot], own, rtol=1e-4, atol=1e-4 * np.abs(own).max())
        talk.add([rng.integers(11, 500, 2 + b) for b in range(4)])
        for b in range(4):
            _, logits = plain_states(model, talk.ids(b), 0)
            assert (talk.logits[b] - logits).abs().max() < 1e-4 * logits.abs().max()
    tokens, kept = talk.tokens, sum(len(talk.ids(b)) - len(openings[b]) for b in range(4))
    assert tokens.opening == len(build_trie(openings)) and tokens.dropped > 6
    assert tokens.added + tokens.written == kept + tokens.dropped
    assert talk.used == tokens.opening + tokens.added + tokens.written  # a slot is a token forwarded
    assert tokens.replayed > 1.5 * talk.used


def test_a_model_that_cannot_be_packed_is_refused(tiny_lm):
    tree = PrefixTree(tiny_lm.model, tiny_lm.tokenizer, packed=False)
    with pytest.raises(UserError, match="another model"):
        Dialogues(tree, [np.array([5, 6])], [0], room=4)


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_conversation_goes_on_as_the_template_renders_it(name):
    prompter = Prompter(make_tokenizer(TEMPLATES[name]), "org/tiny")
    continued = Continued(prompter)
    turns = [Turn("system", "Be kind."), Turn("user", "Say something.")]
    more = [*turns, sentence_turn("We helped her."), Turn("user", "[Score: 1] Go on.")]
    whole = prompter.encode(more, reply=True)
    (start, stop), opening = whole.spans[0], continued.opening(turns)
    np.testing.assert_array_equal(whole.ids[: len(opening)], opening)
    assert start - len(opening) <= ("mistral" in name)  # a blank, which the model writes itself
    np.testing.assert_array_equal(whole.ids[stop:], continued.message("[Score: 1] Go on."))


def test_a_template_that_rewrites_earlier_turns_is_refused():
    prompter = Prompter(make_tokenizer("{{ messages | length }}" + TEMPLATES["chatml"]), "org/tiny")
    with pytest.raises(UserError, match="changes earlier turns"):
        Continued(prompter)
