"""Sentences and labels are found exactly, in every chat template; what cannot be read is refused."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
import yaml
from tokenizers.processors import TemplateProcessing

from analysis import process_prompts
from analysis.base.errors import UserError
from analysis.experiments.trials import ControlTrial, axis_turns, control_turns, report_turns
from analysis.process_prompts import Prompter, Turn, load_prompts, sentence_turn, shown_turn
from configs.settings import CONFIG_DIR, read_yaml
from tests.conftest import CHATML, TEMPLATES, make_tokenizer

SENTENCES = [
    "I went home.",
    "It's Zoë's café, isn't it?",
    'She said: "No – never!" (twice)…',
    "😀 I smiled 🙂 at the 👩‍🚀",
    "Ich hörte 3.5 % mehr; Müller's Größe [sic]!",
    "Score",
    "¿Qué? <b>«naïve»</b> & _more_\\n",
]
SHOWN = "{sentence} [Score: {label}]"
REPLY_STARTS = {
    "chatml": "<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "[/INST]",
}
PROMPTS = load_prompts("commonsense")
CHAT = [Turn("system", "You help."), Turn("user", "Say a sentence.")]


@pytest.fixture(scope="module", params=TEMPLATES)
def named(request) -> tuple[str, Prompter]:
    """Name of a template, and a prompter that uses it."""
    return request.param, Prompter(make_tokenizer(TEMPLATES[request.param]), f"org/{request.param}")


def text_of(prompter: Prompter, ids: np.ndarray) -> str:
    return prompter.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def pooled_text(prompter: Prompter, turns: list[Turn]) -> str:
    encoded = prompter.encode(turns)
    (span,) = encoded.spans
    assert span[1] == len(encoded.ids), "the ids go on after the sentence"
    return text_of(prompter, encoded.ids[slice(*span)])


def inactive_turns(sentence: str) -> list[Turn]:
    others = [s for s in SENTENCES if s != sentence][:4]
    return control_turns(ControlTrial(4, True, 1, "inactive"), PROMPTS, [*others, sentence], [0, 1, 1, 0, 1])


@pytest.mark.parametrize("sentence", SENTENCES)
def test_pooled_tokens_decode_to_exactly_the_sentence(named, sentence):
    name, prompter = named
    for turns in (axis_turns(PROMPTS, sentence), inactive_turns(sentence)):
        # Mistral's template puts a blank before the sentence, which its first token may hold
        allowed = {sentence, " " + sentence} if name == "mistral" else {sentence}
        assert pooled_text(prompter, turns) in allowed


@pytest.mark.parametrize("sentence", SENTENCES)
def test_pooled_tokens_decode_to_exactly_the_sentence_on_the_embedded_model(smollm2, sentence):
    prompter = Prompter(smollm2.tokenizer, smollm2.name)
    for turns in (axis_turns(PROMPTS, sentence), inactive_turns(sentence)):
        assert pooled_text(prompter, turns) == sentence


def test_no_special_token_and_no_shown_score_is_pooled(named):
    _, prompter = named
    special = set(prompter.tokenizer.all_special_ids)
    for sentence in SENTENCES:
        encoded = prompter.encode(inactive_turns(sentence))
        start, stop = encoded.spans[0]
        assert not special & set(encoded.ids[start:stop].tolist())
        assert special & set(encoded.ids.tolist())
        assert "[Score:" in text_of(prompter, encoded.ids[:start])
        assert "[Score:" not in text_of(prompter, encoded.ids[start:stop])


@pytest.mark.parametrize("flip", [False, True])
def test_label_positions_decode_to_the_digit_shown(named, flip):
    _, prompter = named
    labels = [0, 1, 1, 0, 1, 0, 0]
    turns = report_turns(PROMPTS, SENTENCES, labels, flip)
    whole, encoded = prompter.encode(turns, reply=True), prompter.encode(turns)
    digits = [text_of(prompter, whole.ids[[place]]).strip() for place in whole.labels]
    assert digits == [str(label ^ flip) for label in labels]
    assert encoded.labels == whole.labels
    # the last label itself is not needed: its logits are at the token before
    np.testing.assert_array_equal(encoded.ids, whole.ids[: whole.labels[-1]])


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_beginning_of_sequence_token_is_never_doubled(name):
    tokenizer = make_tokenizer(TEMPLATES[name])
    bos = tokenizer.bos_token_id
    adds_bos = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.backend_tokenizer.post_processor = adds_bos
    assert tokenizer("x")["input_ids"][0] == bos  # this tokenizer would add one of its own
    encoded = Prompter(tokenizer, name).encode(axis_turns(PROMPTS, SENTENCES[1]))
    assert encoded.ids.tolist().count(bos) == (0 if name == "chatml" else 1)


def test_the_system_text_is_folded_into_the_user_turn_only_without_a_system_role(named):
    name, prompter = named
    assert prompter.fold_system == (name == "gemma")
    text = text_of(prompter, prompter.encode([*CHAT, sentence_turn("I ran.")]).ids)
    assert text.count("You help.") == text.count("Say a sentence.") == 1
    if name == "gemma":
        assert "<start_of_turn>user\nYou help.\n\nSay a sentence.<end_of_turn>" in text


def test_a_reply_is_asked_for_with_the_tokens_that_precede_a_prefilled_sentence(named):
    name, prompter = named
    asked = prompter.encode(CHAT, reply=True)
    assert text_of(prompter, asked.ids).endswith(REPLY_STARTS[name])
    for sentence in SENTENCES:
        given = prompter.encode([*CHAT, sentence_turn(sentence)])
        before = given.ids[: given.spans[0][0]]
        np.testing.assert_array_equal(asked.ids, before[: len(asked.ids)])
        assert text_of(prompter, before[len(asked.ids) :]) in ("", " " if name == "mistral" else "")


def test_the_date_in_a_template_is_fixed():
    prompter = Prompter(make_tokenizer("{{ date_string }}" + CHATML), "x")
    assert text_of(prompter, prompter.encode(CHAT, reply=True).ids).startswith("26 Jul 2024")


# ---------------------------------------------------------------- labels


def test_answer_ids_are_the_tokens_of_the_digits(named):
    _, prompter = named
    found = prompter.answer_ids(SHOWN, range(10))
    assert [text_of(prompter, np.array([i])) for i in found] == list("0123456789")


def test_answer_ids_refuses_labels_of_several_tokens(named):
    with pytest.raises(UserError, match=r"labels \[1, 10\] are not single tokens"):
        named[1].answer_ids(SHOWN, (1, 10))


def test_answer_ids_refuses_a_label_that_is_merged_with_its_bracket():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["1]"])
    with pytest.raises(UserError, match=r"tokens of '1' decode to '1\]'"):
        Prompter(tokenizer, "x").answer_ids(SHOWN, (0, 1))


def test_a_shown_turn_marks_its_digit():
    turn = shown_turn(SHOWN, "I like {braces}.", 1, mark_label=True)
    assert turn.content == "I like {braces}. [Score: 1]"
    assert turn.content[turn.label] == "1" and turn.sentence is None


# ---------------------------------------------------------------- what cannot be used is refused


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("m['content']", "m['content'] | upper"), "does not keep the text"),
        (CHATML.replace("m['content']", "m['content'] * 2"), "does not keep the text"),
        (CHATML.replace("for m in messages", "for m in messages if m.role != 'user'"), "drops the user turn"),
    ],
)
def test_a_template_that_rewrites_doubles_or_drops_a_turn_is_refused(template, message):
    with pytest.raises(UserError, match=message):
        Prompter(make_tokenizer(template), "x").encode([*CHAT, sentence_turn("I went home.")])


def test_a_template_that_drops_only_the_system_turn_gets_it_in_the_user_turn():
    template = CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
    prompter = Prompter(make_tokenizer(template), "x")
    assert "You help.\n\nSay a sentence." in text_of(prompter, prompter.encode(CHAT, reply=True).ids)


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(UserError, match="org/slow .*fast one is needed"):
        Prompter(types.SimpleNamespace(is_fast=False), "org/slow")


def glued(token: str) -> Prompter:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([token])
    return Prompter(tokenizer, "x")


def test_a_sentence_that_the_tokenizer_merges_with_its_surroundings_is_refused():
    turns = [*CHAT, sentence_turn("I went home.")]
    with pytest.raises(UserError, match=r"decode to 'assistant\\nI went home.'.*merges it"):
        glued("assistant\nI").encode(turns)


def test_a_sentence_that_the_tokenizer_merges_with_a_newline_is_refused():
    with pytest.raises(UserError, match="merges it"):
        glued("\nI").encode([*CHAT, sentence_turn("I went home.")])


# ---------------------------------------------------------------- models without a chat template


@pytest.fixture
def config_dir(tmp_path, monkeypatch) -> Path:
    """A folder of configs that a test may change."""
    for name in ("prompt_tags.yml", "meta_prompts.yml"):
        (tmp_path / name).write_text((CONFIG_DIR / name).read_text())
    monkeypatch.setattr(process_prompts, "CONFIG_DIR", tmp_path)
    return tmp_path


def test_a_tokenizer_without_chat_template_is_refused_with_the_file_to_edit():
    with pytest.raises(UserError, match=r"org/base has no chat template.*configs/prompt_tags\.yml.*gpt2"):
        Prompter(make_tokenizer(None), "org/base")


def test_prompt_tags_stand_in_for_a_chat_template(config_dir):
    tags = {"bos": True, "system": ["# ", "\n"], "user": ["Q: ", "\n"], "assistant": ["A: ", "\n"]}
    (config_dir / "prompt_tags.yml").write_text(yaml.safe_dump({"org/base": tags}))
    prompter = Prompter(make_tokenizer(None), "org/base")
    asked = prompter.encode(CHAT, reply=True).ids
    assert text_of(prompter, asked) == "<s># You help.\nQ: Say a sentence.\nA:"
    for sentence in SENTENCES:
        given = prompter.encode([*CHAT, sentence_turn(sentence)])
        np.testing.assert_array_equal(given.ids[: len(asked)], asked)
        assert text_of(prompter, given.ids[slice(*given.spans[0])]).strip() == sentence


def test_the_shipped_prompt_tags_work():
    prompter = Prompter(make_tokenizer(None), "openai-community/gpt2")
    text = text_of(prompter, prompter.encode(CHAT, reply=True).ids)
    assert text == "You help.\n\nUser: Say a sentence.\nAssistant:"


@pytest.mark.parametrize("tags", ["text", {"system": ["a", "b"]}, {r: ["a"] for r in ("system", "user")}])
def test_incomplete_prompt_tags_are_refused(config_dir, tags):
    (config_dir / "prompt_tags.yml").write_text(yaml.safe_dump({"org/base": tags}))
    with pytest.raises(UserError, match=r"org/base needs \[before, after\] for system, user, assistant"):
        Prompter(make_tokenizer(None), "org/base")


# ---------------------------------------------------------------- configs/meta_prompts.yml


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shown": "{sentence} [Score: 1]"}, "shown must hold {sentence} then {label}"),
        ({"control_request": "Go to {target} with {sentence}"}, "control_request must hold {target}"),
        ({"axis_system": "Hello {name}"}, "axis_system must hold no braces"),
        ({"axis_system": "Hello }"}, "axis_system must hold no braces"),
        ({"report_sytem": "x"}, "unknown report_sytem; the keys are"),
        ({"shown": "{sentence} {label"}, "shown must hold"),
        ({"shown": "{label} {sentence}"}, "shown must hold"),
        ({"shown": "{sentence} {label}{label}"}, "shown must hold"),
        ({"shown": "{sentence} {label!r}"}, "shown must hold"),
        ({"shown": "{sentence} {label:>2}"}, "shown must hold"),
        ({"shown": "{sentence} {{{label}}}"}, "shown must hold"),
        ({"axis_system": None}, "every text must be a string"),
        ({"user_turns": ["x"]}, "user_turns"),
        ({"user_turns": {"commonsense": 7}}, "user_turns"),
    ],
)
def test_prompt_texts_that_cannot_be_filled_in_are_refused(config_dir, change, message):
    texts = read_yaml(CONFIG_DIR / "meta_prompts.yml") | change
    (config_dir / "meta_prompts.yml").write_text(yaml.safe_dump(texts))
    with pytest.raises(UserError, match=message):
        load_prompts("commonsense")


def test_a_missing_prompt_text_is_named(config_dir):
    texts = read_yaml(CONFIG_DIR / "meta_prompts.yml")
    del texts["control_active"]
    (config_dir / "meta_prompts.yml").write_text(yaml.safe_dump(texts))
    with pytest.raises(UserError, match=r"meta_prompts\.yml: missing or unknown control_active"):
        load_prompts("commonsense")


def test_a_dataset_may_have_its_own_user_turn():
    texts = read_yaml(CONFIG_DIR / "meta_prompts.yml")
    assert load_prompts("commonsense").user_turn == texts["user_turns"]["commonsense"]
    assert load_prompts("custom/x").user_turn == texts["user_turn"] != texts["user_turns"]["commonsense"]
