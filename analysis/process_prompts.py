"""Conversations to token ids, with the exact place of every sentence and label.

The conversation is rendered once by the model's own chat template; places are found as character offsets in
the rendered text, turned into token ranges by the tokenizer's offsets, and checked by decoding them back.
Nothing is assumed about the template, so this works for any model that has one; a model without one needs
an entry in configs/prompt_tags.yml.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from analysis.base.errors import UserError
from configs.settings import CONFIG_DIR, read_yaml

# Llama templates print today's date unless they are given one: a result must not depend on the day
TEMPLATE_OPTIONS = {"date_string": "26 Jul 2024"}


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str
    """Text without surrounding blanks."""
    sentence: tuple[int, int] | None = None
    """Characters [start, stop) of ``content`` whose activation is wanted."""
    label: int | None = None
    """Character of ``content`` that is the label's digit."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids."""

    ids: np.ndarray
    """(T,) int64, up to the last token that is needed."""
    spans: tuple[tuple[int, int], ...]
    """Token range [start, stop) of every marked sentence, in order."""
    labels: tuple[int, ...]
    """Position of the token of every marked label; its logits are at the position before."""


def sentence_turn(sentence: str) -> Turn:
    """Return an assistant turn that is just the sentence, marked."""
    return Turn("assistant", sentence, sentence=(0, len(sentence)))


def shown_turn(template: str, sentence: str, label: int, mark_label: bool = False) -> Turn:
    """Return an assistant turn with its score, such as ``I went home. [Score: 1]``."""
    before, after = template.split("{label}")
    before = before.format(sentence=sentence)
    content = f"{before}{label}{after}"
    return Turn("assistant", content, label=len(before) if mark_label else None)


class Prompter:
    """Renders and tokenizes conversations for one model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
        if not tokenizer.is_fast:
            raise UserError(f"the tokenizer of {model} reports no character offsets: a fast one is needed")
        self.tokenizer = tokenizer
        self.tags = None if tokenizer.chat_template else _prompt_tags(model)
        self.fold_system = False
        if self.tags is None:
            self.fold_system = not self._takes_system()
        self._skeleton = lru_cache(maxsize=None)(self._find_skeleton)

    def encode(self, turns: Sequence[Turn], reply: bool = False) -> Encoded:
        """Return token ids with the marked places.

        Args:
            turns: the conversation.
            reply: end with what precedes the assistant's next turn; else the ids end with the last marked
                sentence's last token, or with the token before the last marked label.

        Raises:
            UserError: a template changes the text, or a sentence's tokens do not decode to it.
        """
        turns = self._folded(turns)
        text, starts = self._locate(turns, reply)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.array(encoded["input_ids"], np.int64)
        offsets = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
        spans, labels = [], []
        for turn, start in zip(turns, starts, strict=True):
            if turn.sentence is not None:
                first, last = (start + place for place in turn.sentence)
                spans.append(self._span(ids, offsets, first, last, text[first:last]))
            if turn.label is not None:
                at = start + turn.label
                labels.append(self._span(ids, offsets, at, at + 1, text[at])[0])
        marked = [stop for _, stop in spans] + labels
        end = len(ids) if reply or not marked else max(marked)
        return Encoded(ids[:end], tuple(spans), tuple(labels))

    def answer_ids(self, template: str, labels: Sequence[int]) -> list[int]:
        """Return the token id of each label where it stands in a shown turn.

        Raises:
            UserError: a label is not one token of its own in this tokenizer.
        """
        found = []
        for label in labels:
            turns = [Turn("user", "x"), shown_turn(template, "I went home.", label, mark_label=True)]
            text, starts = self._locate(turns, False)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            found.append((ids, self.encode(turns).labels[0]))
        places = {place for _, place in found}
        tokens = [ids[place] for ids, place in found]
        rests = {tuple(ids[:place]) + tuple(ids[place + 1 :]) for ids, place in found}
        if len(places) > 1 or len(rests) > 1 or len(set(tokens)) < len(tokens):
            raise UserError(
                f"the labels {list(labels)} are not single tokens in {template!r} for this tokenizer: change "
                "`shown` in configs/meta_prompts.yml"
            )
        return tokens

    # ------------------------------------------------------------ rendering

    def _locate(self, turns: Sequence[Turn], reply: bool) -> tuple[str, list[int]]:
        """Return the rendered text and where each turn's content starts in it."""
        order, pieces = self._skeleton(tuple(turn.role for turn in turns), reply)
        text, starts = pieces[0], [0] * len(turns)
        for turn, piece in zip(order, pieces[1:], strict=True):
            starts[turn] = len(text)
            text += turns[turn].content + piece
        rendered = self._render([(t.role, t.content) for t in turns], reply)
        if rendered != text:
            raise UserError(
                "the chat template does not keep the text of the turns as it is, so sentences cannot be "
                f"found in it; near: {_first_difference(rendered, text)!r}"
            )
        return text, starts

    def _find_skeleton(self, roles: tuple[str, ...], reply: bool) -> tuple[list[int], list[str]]:
        """Render placeholders to learn what the template puts around the turns, and in which order."""
        marks = [f"\ue000{i}\ue001" for i in range(len(roles))]
        rendered = self._render(list(zip(roles, marks, strict=True)), reply)
        places = sorted((rendered.find(mark), i) for i, mark in enumerate(marks))
        if places and places[0][0] < 0:
            raise UserError(f"the chat template drops the {roles[places[0][1]]} turn, so it cannot be used")
        pieces, end = [], 0
        for place, i in places:
            pieces.append(rendered[end:place])
            end = place + len(marks[i])
        return [i for _, i in places], [*pieces, rendered[end:]]

    def _render(self, messages: Sequence[tuple[str, str]], reply: bool) -> str:
        if self.tags is not None:
            return _render_tags(self.tags, messages, reply, self.tokenizer.bos_token)
        chat = [{"role": role, "content": content} for role, content in messages]
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": reply, **TEMPLATE_OPTIONS}
        return str(self.tokenizer.apply_chat_template(chat, **options))

    def _takes_system(self) -> bool:
        try:
            rendered = self._render([("system", "\ue000"), ("user", "x")], False)
        except (TemplateError, ValueError):
            return False
        return "\ue000" in rendered

    def _folded(self, turns: Sequence[Turn]) -> list[Turn]:
        """Put the system text before the first user turn, for templates without a system role."""
        if not self.fold_system or not turns or turns[0].role != "system":
            return list(turns)
        system, first, *rest = turns
        return [Turn(first.role, f"{system.content}\n\n{first.content}"), *rest]

    # ------------------------------------------------------------ places

    def _span(
        self, ids: np.ndarray, offsets: np.ndarray, first: int, last: int, wanted: str
    ) -> tuple[int, int]:
        """Return the tokens that overlap characters [first, last), after decoding them back."""
        inside = np.flatnonzero((offsets[:, 0] < last) & (offsets[:, 1] > first))
        if len(inside):
            start, stop = int(inside[0]), int(inside[-1]) + 1
            text = str(self.tokenizer.decode(ids[start:stop], clean_up_tokenization_spaces=False))
            if text.lstrip(" ") == wanted:  # many tokenizers join a word to the space before it
                return start, stop
        else:
            text = ""
        raise UserError(
            f"the tokens of {wanted!r} decode to {text!r}: the tokenizer merges it with its surroundings, so "
            "its activation cannot be read; change the text or the prompt format"
        )


def _first_difference(a: str, b: str) -> str:
    i = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[max(0, i - 20) : i + 20]


def _prompt_tags(model: str) -> dict[str, Any]:
    known = read_yaml(CONFIG_DIR / "prompt_tags.yml")
    tags = known.get(model)
    if tags is None:
        raise UserError(
            f"the tokenizer of {model} has no chat template: add an entry for it to configs/prompt_tags.yml "
            f"(it has: {', '.join(map(str, known))}), or use an instruction-tuned model"
        )
    roles = ("system", "user", "assistant")
    pairs = [tags.get(role) for role in roles] if isinstance(tags, dict) else []
    whole = [isinstance(pair, list) and [type(text) for text in pair] == [str, str] for pair in pairs]
    if whole != [True] * len(roles):
        raise UserError(f"configs/prompt_tags.yml: {model} needs [before, after] for {', '.join(roles)}")
    return tags


def _render_tags(
    tags: dict[str, Any], messages: Sequence[tuple[str, str]], reply: bool, bos: str | None
) -> str:
    text = (bos or "") if tags.get("bos") else ""
    for role, content in messages:
        before, after = tags[role]
        text += before + content + after
    # the reply starts on a token of its own: "Assistant:" is left without its blank
    return text + (tags["assistant"][0].rstrip(" ") if reply else "")


# ---------------------------------------------------------------- the prompt texts


@dataclass(frozen=True)
class Prompts:
    """The texts of configs/meta_prompts.yml."""

    axis_system: str
    user_turn: str
    shown: str
    scale_binary: str
    scale_levels: str
    control_system: str
    control_request: str
    control_active: str
    control_inactive: str
    report_system: str

    def system(self, kind: str, levels: int) -> str:
        """Return the system text of ``control`` or ``report`` with the scale of the labels filled in."""
        text = self.control_system if kind == "control" else self.report_system
        scale = self.scale_binary if levels == 2 else self.scale_levels.format(top=levels - 1)
        return text.format(scale=scale)


def load_prompts(dataset: str) -> Prompts:
    """Return the prompt texts, with the dataset's own user turn if it has one."""
    path = CONFIG_DIR / "meta_prompts.yml"
    texts = read_yaml(path)
    turns = texts.pop("user_turns", None) or {}
    fields = Prompts.__dataclass_fields__
    if texts.keys() != fields.keys():
        wrong = sorted(map(str, texts.keys() ^ fields.keys()))
        raise UserError(f"{path}: missing or unknown {', '.join(wrong)}; the keys are {', '.join(fields)}")
    if not isinstance(turns, dict) or not all(isinstance(t, str) for t in (*texts.values(), *turns.values())):
        raise UserError(
            f"{path}: every text must be a string, and user_turns a list of `dataset: text` lines"
        )
    places = {
        "shown": ["sentence", "label"],
        "scale_levels": ["top"],
        "control_system": ["scale"],
        "control_request": ["target"],
        "report_system": ["scale"],
    }
    for key, text in texts.items():
        found = _places(text)
        if found != places.get(key, []):
            wanted = " then ".join(f"{{{name}}}" for name in places.get(key, [])) or "no braces"
            raise UserError(f"{path}: {key} must hold {wanted}, not {text!r}")
    name = dataset.removeprefix("published/").removesuffix("_test")
    texts["user_turn"] = turns.get(dataset, turns.get(name, texts["user_turn"]))
    return Prompts(**{key: text.strip() for key, text in texts.items()})


def _places(text: str) -> list[str | None]:
    """Return the names in braces, in order; None for what is more than a name."""
    try:
        if "{{" in text or "}}" in text:
            return [None]
        found = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError:
        return [None]
    return [name if not spec and not conversion else None for name, spec, conversion in found]
