"""Is it introspection? Activations are changed from outside while the visible text stays the same.

``SteeringCurve`` pushes the test sentence of a report prompt along an axis and reads the score and the label
that the model reports. ``CausalReport`` hides a code in the activations: each example sentence is read with
+v or -v, its label tells which, and the model must report the sign with which a test sentence was read.

In a causal report the conversation is the same, token for token, for both signs of the test sentence and for
both mappings (label 1 stands for +v, or for -v). Whoever sees only the text gives the same answer four times
and is right twice: exactly 0.5. A digit that the push itself favours is right in one mapping and wrong in
the other: 0.5 again. Only who learns from the examples which sign goes with which label does better.

Shape letters: N examples   J test sentences   Q strengths   R layers read   D hidden size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from analysis.base.errors import UserError
from analysis.base.seeds import generator
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.request import Request
from analysis.engine.steering import Steering
from analysis.experiments.reading import read_counted
from analysis.experiments.study import Study
from analysis.experiments.trials import axis_turns, draw_order, mirrored
from analysis.process_prompts import Encoded, Prompter, Prompts, Turn, shown_turn
from analysis.results.store import read
from analysis.studies.causal.flags import CausalSizes, CurveSizes
from configs.settings import CONFIG_DIR, read_yaml

ARMS = ("target", "random", "random_norm", "shuffled", "query_only", "clean")
"""What is injected, and when:

    target       the axis, while the examples and the test sentence are read
    random       a random direction, orthogonal to the axis, a new one in each experiment; as many of its own
                 training deviations as ``target`` (variance-matched)
    random_norm  the same direction, pushed as far in activation space as ``target`` (norm-matched)
    shuffled     the axis, but the signs of the examples are permuted: the labels tell nothing
    query_only   the axis, while the test sentence is read only; accuracy is 0.5 by design, but it shows
                 what a push alone does to the digits
    clean        nothing; all answers to one text are equal, so accuracy is 0.5 by design
"""
MAPPINGS = (1, -1)
"""Sign that label 1 stands for."""
SIGNS = (-1, 1)
"""Of the push while the test sentence is read."""
FLIPS = (False, True)
Along = tuple[np.ndarray, float]
"""A unit direction (D,) and the training deviation along it."""


def load_causal_system() -> str:
    """Return the system text of configs/study_prompts.yml.

    Raises:
        UserError: a key is missing or unknown, or the text holds braces; the message names the file.
    """
    path = CONFIG_DIR / "study_prompts.yml"
    texts = read_yaml(path)
    text = texts.get("causal_system")
    if len(texts) > 1 or not isinstance(text, str) or set("{}") & set(text):
        raise UserError(f"{path}: it must hold one text, causal_system, without braces")
    return text.strip()


def labelled_turns(system: str, prompts: Prompts, sentences: Sequence[str], labels: Sequence) -> list[Turn]:
    """Return a conversation of sentences with their labels, every sentence and every label marked."""
    turns, before = [Turn("system", system)], prompts.shown.index("{sentence}")
    for sentence, label in zip(sentences, labels, strict=True):
        shown = shown_turn(prompts.shown, sentence, int(label), mark_label=True)
        place = (before, before + len(sentence))
        turns += [Turn("user", prompts.user_turn), replace(shown, sentence=place)]
    return turns


class Steered:
    """What both studies share; ``lean`` is the logit of digit 1 minus that of digit 0.

    Prompts are built without a model; the engine is handed to what reads them.
    """

    def __init__(self, study: Study, prompter: Prompter, axis: str, layer: int) -> None:
        self.study, self.prompter, self.axis, self.layer = study, prompter, axis, layer
        axes, k = study.axes(layer), study.axes(layer).index(axis)
        self.direction, self.scale, self.seed = axes.directions[k], float(axes.scales[k]), study.settings.seed
        self.digits = prompter.answer_ids(study.prompts.shown, (0, 1))

    def push(self, alpha: float, span: tuple[int, int], along: Along | None = None) -> list[Steering]:
        """Return what adds alpha * deviation * direction to the tokens of a span; nothing for alpha 0."""
        direction, deviation = along or (self.direction, self.scale)
        row, scales = direction[None].astype(np.float32), np.array([deviation], np.float32)
        return [Steering((self.layer,), "add", row, 0 * row, scales, alpha, *span)] if alpha else []

    def conversation(self, system: str, rows: Sequence[int], labels: Sequence[int]) -> Encoded:
        """Return the conversation about ``rows``, the last of which is the test sentence."""
        sentences = [self.study.sentences[row] for row in rows]
        return self.prompter.encode(labelled_turns(system, self.study.prompts, sentences, [*labels, 0]))

    def read(
        self, tree: PrefixTree, requests: Sequence[Request], layers: Sequence[int] = ()
    ) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """Return states (B, R, D) of one span of each request, lean (B,) at one position, and tokens."""
        readings, tokens = read_counted(tree, requests, layers, self.digits)
        logits = np.concatenate([reading.logits for reading in readings])
        if not np.isfinite(logits).all():
            raise UserError("the logits are not finite: use --dtype bfloat16 or float32, or a smaller alpha")
        return np.concatenate([reading.pooled for reading in readings]), logits[:, 1] - logits[:, 0], tokens


class CausalReport(Steered):
    """Runs experiments of the causal report."""

    def __init__(self, study: Study, prompter: Prompter, axis: str, layer: int, sizes: CausalSizes) -> None:
        super().__init__(study, prompter, axis, layer)
        self.sizes, self.system = sizes, load_causal_system()
        hidden = read(study.store.hidden(layer), study.identity)["hidden"]
        self.fitting = hidden[study.axis_rows].astype(np.float64)  # (n_axis, D)

    def random_direction(self, exp: int) -> Along:
        """Return a unit direction (D,) orthogonal to the axis, and the training deviation along it."""
        rng = generator(self.seed, "causal direction", self.layer, exp)
        vector = rng.standard_normal(len(self.direction))
        vector -= (vector @ self.direction) / (self.direction @ self.direction) * self.direction
        vector /= np.linalg.norm(vector)
        return vector, float((self.fitting @ vector).std())

    def draw(self, exp: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows (N + J,), the shown labels (N,), and the shuffled signs (2 mappings, N)."""
        n, half, repeat = self.sizes.n_examples, self.sizes.n_examples // 2, self.sizes.repeat_sentence
        length = 1 if repeat else n + self.sizes.n_test
        rows = np.repeat(draw_order(self.seed, exp, self.study.trial_rows, length), n + 1 if repeat else 1)
        rng = generator(self.seed, "causal", exp)
        labels = rng.permutation(np.repeat([0, 1], half))
        return rows, labels, np.stack([rng.permutation(np.repeat([-1, 1], half)) for _ in MAPPINGS])

    def requests(self, exp: int) -> list[Request]:
        """Return the requests in the order of arm, mapping, test sentence, sign."""
        n, (rows, labels, shuffled) = self.sizes.n_examples, self.draw(exp)
        encoded = [self.conversation(self.system, [*rows[:n], row], labels.tolist()) for row in rows[n:]]
        vector, deviation = self.random_direction(exp)
        directions = {"random": (vector, deviation), "random_norm": (vector, self.scale)}
        found, zero = [], np.zeros(n, np.int64)
        for arm in ARMS:
            along = directions.get(arm)
            for m, mapping in enumerate(MAPPINGS):
                coded = {"shuffled": shuffled[m], "query_only": zero, "clean": zero}
                signs = coded.get(arm, mapping * (2 * labels - 1))
                for one in encoded:
                    for sign in SIGNS:
                        test = 0 if arm == "clean" else sign
                        pairs = zip([*signs, test], one.spans, strict=True)
                        steering = [p for s, at in pairs for p in self.push(s * self.sizes.alpha, at, along)]
                        found.append(Request(one.ids, (), [one.labels[-1] - 1], steering=steering))
        return found

    def unit(self, tree: PrefixTree, exp: int) -> dict[str, Any]:
        """Run one experiment.

        Returns:
            ``rows`` (N + J,), ``labels`` (N,), ``lean`` (arms, 2 mappings, J, 2 signs) float32, and
            ``tokens`` forwarded.
        """
        rows, labels, _ = self.draw(exp)
        _, lean, tokens = self.read(tree, self.requests(exp))
        shape = (len(ARMS), len(MAPPINGS), -1, len(SIGNS))
        return {"rows": rows, "labels": labels, "lean": lean.reshape(shape), "tokens": tokens}

    def works(self, exp: int) -> list[tuple[list[Request], int]]:
        """Return the calls of the engine that an experiment takes, with the number of layers read."""
        return [(self.requests(exp), 0)]


def later_layers(layer: int, n_layers: int) -> list[int]:
    """Return ``layer`` and later layers up to the last, at most five in even steps."""
    return sorted({round(at) for at in np.linspace(layer, n_layers - 1, 5)})


class SteeringCurve(Steered):
    """Runs experiments of the validation curve."""

    def __init__(self, study: Study, prompter: Prompter, axis: str, layer: int, sizes: CurveSizes) -> None:
        super().__init__(study, prompter, axis, layer)
        self.sizes = sizes
        self.layers_read = later_layers(layer, len(study.layers))

    def rows(self, exp: int) -> np.ndarray:
        """Return the rows (N + J,) of one experiment: the examples, then the test sentences."""
        length = self.sizes.n_examples + self.sizes.n_test
        return draw_order(self.seed, exp, self.study.trial_rows, length)

    def requests(self, exp: int) -> tuple[list[Request], list[Request]]:
        """Return the readings of the test sentences alone, and after the examples with either labels."""
        n, report, rows = self.sizes.n_examples, self.study.prompts.system("report", 2), self.rows(exp)
        labels = self.study.labels(self.layer, self.axis)[rows[:n]]
        tests = [axis_turns(self.study.prompts, self.study.sentences[row]) for row in rows[n:]]
        shown = [
            self.conversation(report, [*rows[:n], row], mirrored(labels, 2) if flip else labels.tolist())
            for flip in FLIPS for row in rows[n:]
        ]  # fmt: skip
        alone = [self.prompter.encode(turns) for turns in tests]
        return self.pushed(alone), self.pushed(shown)

    def pushed(self, encoded: Sequence[Encoded]) -> list[Request]:
        """Return every conversation with every strength."""
        return [self.request(one, alpha) for one in encoded for alpha in self.sizes.alphas]

    def unit(self, tree: PrefixTree, exp: int) -> dict[str, Any]:
        """Run one experiment.

        Returns:
            ``rows`` (N + J,); ``measured`` (J, Q, R) scores of the test sentence in the measuring
            conversation, and ``in_report`` (2 flips, J, Q, R) in the report prompt, NaN where a layer has no
            such axis; ``lean`` (2 flips, J, Q) to the digit that stands for the upper half; ``tokens``
            forwarded.
        """
        alone, shown = self.requests(exp)
        measured, _, first = self.scored(tree, alone)
        in_report, lean, second = self.scored(tree, shown)
        shape = (len(FLIPS), self.sizes.n_test, len(self.sizes.alphas))
        sides = np.array([-1 if flip else 1 for flip in FLIPS], np.float32)[:, None, None]
        return {
            "rows": self.rows(exp), "measured": measured.reshape(*shape[1:], -1),
            "in_report": in_report.reshape(*shape, -1), "lean": sides * lean.reshape(shape),
            "tokens": {name: first[name] + second[name] for name in first},
        }  # fmt: skip

    def works(self, exp: int) -> list[tuple[list[Request], int]]:
        """Return the calls of the engine that an experiment takes, with the number of layers read."""
        return [(requests, len(self.layers_read)) for requests in self.requests(exp)]

    def scored(
        self, tree: PrefixTree, requests: Sequence[Request]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """Return scores (B, R) of the last sentence of each, lean (B,) before its label, and tokens."""
        pooled, lean, tokens = self.read(tree, requests, self.layers_read)
        axes = [self.study.axes(layer) for layer in self.layers_read]
        scores = np.stack([one.score(pooled[:, r], self.axis) for r, one in enumerate(axes)], axis=1)
        return scores, lean, tokens

    def request(self, encoded: Encoded, alpha: float) -> Request:
        """Return one reading of a conversation whose last sentence is pushed."""
        span, before = encoded.spans[-1], [place - 1 for place in encoded.labels[-1:]]
        return Request(encoded.ids, [span], before, steering=self.push(alpha, span))
