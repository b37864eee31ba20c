"""What every file under results/ holds: one dataclass for each kind, and one table of the kinds.

Whoever writes, reads, resumes, draws or verifies asks :func:`check`, so that they never disagree. A field is
named here, with its type, shape and meaning, and made by the code that does the work; nothing else needs to
know of it. One that is ``| None`` may be lacking in older files and is NaN in tables. docs/results.md is made
of the docstrings.

Shape letters (sizes in brackets are told by the settings in the meta data):
    B sentences (n_axis + n_trial)   D hidden size (hidden_size)   K axes   R principal components
    T trials   L layers read   P positions   A labels (levels)   N examples   S tokens
    C conversations   turns of a conversation   J test sentences   Q strengths of a push   W replies
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from analysis.base.files import DamagedFile
from analysis.results.fields import Sizes, Wrong, build, check_fields, need
from configs.settings import ARMS, LEVELS, MODES, PUSHED, TRUE, arm_shots

META_PARTS = 10_000
"""Most values in the meta data, lists inside each other all together."""
MOST, MOST_LAYERS = 2**31, 10_000
"""Above every number of examples and rows, and of layers."""
Parts = Mapping[str, Any]
"""What a file's name says: axis, layer, exp, levels, as far as its kind has them."""


# ---------------------------------------------------------------- what all files hold


@dataclass(frozen=True, kw_only=True)
class Meta:
    """Where a file comes from. Only ``identity`` decides whether a run takes a file for its own work."""

    identity: dict[str, Any]
    """Every setting and fingerprint that the content depends on; a run with others refuses the file."""
    schema: int
    """Version of the layout that this page describes."""
    written: str | None = None
    """Local time."""
    settings: dict[str, Any] | None = None
    """All settings of the run, see configs/settings.py."""
    seed: int | None = None
    """Of the run."""
    model_name: str | None = None
    """The model that did the work, as it was asked for."""
    model_fingerprint: str | None = None
    """Hash of its configuration and of samples of its weights."""
    n_layers: int | None = None
    """Blocks of that model."""
    hidden_size: int | None = None
    """Its D."""
    n_parameters: int | None = None
    """Weights of that model."""
    device: str | None = None
    """Where it ran, such as ``cpu`` or ``cuda:0, cuda:1``."""
    dtype: str | None = None
    """Of its weights, such as ``float32``."""
    attn_implementation: str | None = None
    """Such as ``sdpa``."""
    source_model: str | None = None
    """Control and report: the model whose scores are controlled or reported."""
    source_fingerprint: str | None = None
    """Its fingerprint."""
    dataset_key: str | None = None
    """Such as ``commonsense`` or ``custom/mine``."""
    dataset_fingerprint: str | None = None
    """Hash of its sentences, labels and split."""
    flags: str | None = None
    """Further flags of the command line, for the commands that make a file again."""
    packages: dict[str, str] | None = None
    """Versions of torch, transformers, numpy, scikit-learn and scipy."""
    python: str | None = None
    """Version."""
    machine: str | None = None
    """System, processor, number of cores."""
    git_commit: str | None = None
    """Of this repository; empty where there is none."""
    git_dirty: bool | None = None
    """Whether tracked files differed from it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the file of one kind holds."""

    meta: dict[str, Any]
    """Where it comes from, see Meta."""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return a checked record as an object; what the class does not name is left out."""
        return build(cls, record)

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the meta data tell, None where they do not."""
        return {}

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """Yield what must be true of the values, beyond types and shapes, and what is wrong if it is not."""
        yield from ()


def number(about: Mapping[str, Any], name: str) -> int | None:
    """Return a size that meta data or settings tell, None if there is no such number."""
    value = about.get(name)
    return value if type(value) is int and 0 <= value < MOST else None


def sentences(meta: Mapping[str, Any]) -> dict[str, int | None]:
    """Return B and the hidden size D, as preparation files know them."""
    halves = [number(meta["identity"], name) for name in ("n_axis", "n_trial")]
    whole = None if None in halves else sum(size for size in halves if size)
    return {"B": whole, "D": number(meta, "hidden_size")}


def _listed(identity: Mapping[str, Any], name: str, kind: type) -> list[Any] | None:
    """Return a setting that is a list of ``kind``, None if it is not."""
    value = identity.get(name)
    known = isinstance(value, list) and all(type(item) is kind for item in value)
    return value if known else None


def _within(values: np.ndarray, low: float, high: float, nan: bool = False) -> bool:
    """Return whether all values lie in [low, high]; NaN does where ``nan`` is set."""
    return bool((((values >= low) & (values <= high)) | (np.isnan(values) if nan else False)).all())


def _finite_or_nan(values: np.ndarray | None) -> bool:
    return values is None or not np.isinf(values).any()


# ---------------------------------------------------------------- preparation


@dataclass(frozen=True, kw_only=True)
class Split(Record):
    """The sentences of a run and its two halves: one fits the axes, experiments draw from the other."""

    ids: Annotated[list[str], "B"]
    """Of the sentences in the data set."""
    sentences: Annotated[list[str], "B"]
    """Their text."""
    labels: Int[np.ndarray, " B"]
    """Class in the data set, 0 or 1."""
    groups: Int[np.ndarray, " B"]
    """Sentences that belong together, such as a minimal pair; no group is in both halves."""
    axis_rows: Int[np.ndarray, " n_axis"]
    """Rows of the sentences that fit the axes."""
    trial_rows: Int[np.ndarray, " n_trial"]
    """Rows of the sentences that experiments draw from."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the settings tell."""
        halves = {name: number(meta["identity"], name) for name in ("n_axis", "n_trial")}
        return {"B": sentences(meta)["B"], **halves}

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """Rows are those of sentences, none of them twice, and halves share neither a row nor a group."""
        yield np.isin(self.labels, (0, 1)).all(), "labels are not 0 and 1"
        for name in ("axis_rows", "trial_rows"):
            rows = getattr(self, name)
            yield len(rows) and _within(rows, 0, len(self.labels) - 1), f"{name} is out of range"
            yield len(set(rows.tolist())) == len(rows), f"{name} names a sentence twice"
        yield not np.intersect1d(self.axis_rows, self.trial_rows).size, "axis_rows and trial_rows overlap"
        halves = (self.groups[rows] for rows in (self.axis_rows, self.trial_rows))
        yield not np.intersect1d(*halves).size, "groups are split between axis_rows and trial_rows"


@dataclass(frozen=True, kw_only=True)
class Hidden(Record):
    """One layer's states: of every sentence the mean over its own tokens, or its last token."""

    hidden: Float[np.ndarray, "B D"]
    """Residual stream after the block."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the settings and the model tell."""
        return sentences(meta)

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """States are finite."""
        yield np.isfinite(self.hidden).all(), "hidden is not finite"


@dataclass(frozen=True, kw_only=True)
class Embedding(Record):
    """Of every sentence the mean input embedding, before the first block: what the text alone tells."""

    hidden: Float[np.ndarray, "B width"]
    """Mean over the sentence's own tokens; models exist whose embeddings are not of the hidden size."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the number of sentences."""
        return {"B": sentences(meta)["B"]}

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """Embeddings are finite."""
        yield np.isfinite(self.hidden).all(), "hidden is not finite"


@dataclass(frozen=True, kw_only=True)
class HiddenEach(Record):
    """One layer's states of every token of every sentence."""

    hidden: Float[np.ndarray, "S D"]
    """Residual stream after the block; sentences follow one another."""
    offsets: Int[np.ndarray, " B+1"]
    """Sentence b has the rows ``offsets[b]`` to ``offsets[b + 1] - 1``."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the settings and the model tell."""
        return sentences(meta)

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """Every sentence has a token, and every token a sentence."""
        yield np.isfinite(self.hidden).all(), "hidden is not finite"
        ends = len(self.offsets) > 1 and (self.offsets[0], self.offsets[-1]) == (0, len(self.hidden))
        yield ends and (np.diff(self.offsets) > 0).all(), "offsets do not rise from 0 to the tokens of hidden"


@dataclass(frozen=True, kw_only=True)
class Axes(Record):
    """The axes of one layer, and the position of every sentence on each of them."""

    names: Annotated[list[str], "K"]
    """Such as ``lr``, ``meandiff``, ``random0``, ``pc1``, or that of an imported axis."""
    directions: Float[np.ndarray, "K D"]
    """Rows of length 1."""
    mean: Float[np.ndarray, " D"]
    """Mean of the fitting sentences, removed before projecting."""
    scales: Float[np.ndarray, " K"]
    """Standard deviation of the held-out (trial) sentences along the axis; above 0."""
    thresholds: Float[np.ndarray, " K"]
    """Score above which a sentence has label 1, in standard deviations."""
    variance_ratio: Float[np.ndarray, " R"]
    """Share of the variance of every principal component, also of those that are no axes."""
    accuracy: dict[str, tuple[float, float]]
    """Axis -> share of the fitting and of the held-out sentences on their class's side; not of components."""
    scores: Float[np.ndarray, "B K"]
    """Of every sentence, in standard deviations; 0 is the mean."""
    lr_c: float | None = None
    """Inverse L2 strength of ``lr``, given or chosen by cross-validation."""
    imported: dict[str, str] | None = None
    """Axis -> fingerprint of its direction, for the axes that were not fitted here."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the settings and the model tell."""
        return sentences(meta)

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """Names differ, numbers are finite, directions have length 1 and scales are above 0."""
        yield self.names and len(self.variance_ratio), "it has no axes, or no variances"
        yield len(set(self.names)) == len(self.names), "names has an axis twice"
        for name in ("directions", "mean", "scales", "thresholds", "scores"):
            yield np.isfinite(getattr(self, name)).all(), f"{name} is not finite"
        lengths = np.linalg.norm(self.directions.astype(np.float64), axis=1)
        yield _within(lengths, 0.99, 1.01), "directions are not of length 1"
        yield (self.scales > 0).all(), "a scale is not above 0"
        yield _within(self.variance_ratio, 0, 1.001), "variance_ratio holds what is no share"
        shares = np.array(list(self.accuracy.values()), float)
        yield _within(shares, 0, 1, nan=True), "accuracy holds what is no share"
        yield set(self.imported or ()) <= set(self.names), "imported names what is no axis"


# ---------------------------------------------------------------- experiments


@dataclass(frozen=True, kw_only=True)
class ControlUnit(Record):
    """Control: an experiment on one axis of one layer; a trial per arm, N, mode, side and assignment."""

    n: Int[np.ndarray, " T"]
    """Examples shown."""
    flip: Bool[np.ndarray, " T"]
    """Whether labels are shown mirrored: the top one stands for a low score."""
    target: Int[np.ndarray, " T"]
    """The label that is asked for, as it is shown: 0 or levels - 1."""
    want: Int[np.ndarray, " T"]
    """1: a high score is wanted, 0: a low one."""
    mode: Annotated[list[str], "T"]
    """``active``: the model writes a sentence; ``inactive``: it reads the given one."""
    arm: Annotated[list[str], "T"] | None = None
    """``true``: the shown scores are those of the sentences; ``sham``: they are permuted; ``pushed``: as
    true, and the axis is added by steering. Older units have the true arm alone."""
    affected: Annotated[list[str], "K"]
    """Axes that are scored: all of the targeted layer, and ``lr_ensemble``."""
    scores: Float[np.ndarray, "T K"]
    """In standard deviations of held-out sentences; NaN for an empty reply."""
    neutral: Float[np.ndarray, "T K"] | None = None
    """The same axes, for the sentence read again in the conversation that the axes were fitted in: what its
    text carries by itself."""
    words: Float[np.ndarray, " T"] | None = None
    """What a probe of the words predicts for the targeted axis, in deviations of its held-out predictions."""
    embedding: Float[np.ndarray, " T"] | None = None
    """What a probe of the mean input embedding predicts for it."""
    layers: Int[np.ndarray, " L"]
    """Layers read, rising."""
    by_layer: Float[np.ndarray, "T L"] | None = None
    """Score on every layer's own axis of the targeted name; components are turned to agree with it."""
    projection: Float[np.ndarray, "T L"] | None = None
    """Every layer read along the targeted layer's direction, in its deviations; NaN for ``lr_ensemble``."""
    text: Annotated[list[str], "T"]
    """The sentence that was written, or read; empty where a reply held none."""
    reply_ids: Annotated[list[list[int]], "T"] | None = None
    """Tokens of the reply; none where a sentence was read."""
    copy_rate: Float[np.ndarray, " T"] | None = None
    """Share of the reply that is its longest piece found in an example; NaN where a sentence was read."""
    cut: Bool[np.ndarray, " T"] | None = None
    """Whether a trailing score was cut off the reply."""
    empty: Bool[np.ndarray, " T"] | None = None
    """Whether the reply held no sentence."""
    difference: dict[str, Float[np.ndarray, " D"]]
    """Mode -> state when high was wanted minus state when low was, at the target layer and the largest N, the
    mean over both label assignments; NaN where a reply was empty."""
    test_sentence: Annotated[list[str], "T"] | None = None
    """The given sentence of the trial; in mode active it is not shown."""
    rows: Int[np.ndarray, " shown"] | None = None
    """Rows of the split: the examples in the order shown, then the last test sentence."""
    tokens: dict[str, int]
    """Forwarded: ``prompt``, ``reply``, in so many ``calls``; ``asked``: of prompts, if none shared any."""
    seconds: float
    """Time that the unit took."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the model tells."""
        return {"D": number(meta, "hidden_size"), "L": number(meta, "n_layers")}

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """Every trial is there once, and scores are numbers where there is a sentence."""
        yield len(self.n) and len(self.layers), "it has no trials or no layers"
        yield set(self.mode) <= set(MODES), f"mode is not {' or '.join(MODES)}"
        yield np.isin(self.want, (0, 1)).all() and _within(self.n, 0, MOST), "want or n is out of range"
        yield _within(self.target, 0, parts["levels"] - 1), "target is out of range"
        yield ((self.target > 0) ^ self.flip == self.want).all(), "target, flip and want do not fit together"
        yield parts["axis"] in self.affected, f"axis {parts['axis']} is not among the affected"
        yield len(set(self.affected)) == len(self.affected), "affected names an axis twice"
        yield (np.diff(self.layers) > 0).all() and _within(self.layers, 0, MOST), "layers do not rise"
        arms = self.arms
        yield set(arms) <= set(ARMS), f"arm is not {' or '.join(ARMS)}"
        places = (self.n.tolist(), self.flip.tolist(), self.want.tolist(), self.mode)
        cells = list(zip(arms, *places, strict=True))
        yield len(set(cells)) == len(cells), "it has the same trial twice"
        asked = self._asked()
        yield asked is None or asked == set(cells), "its trials are not those of its settings"
        yield set(self.difference) >= set(self.mode), "difference lacks a mode"
        for name in ("scores", "by_layer", "projection", "neutral", "words", "embedding"):
            yield _finite_or_nan(getattr(self, name)), f"{name} holds infinity"
        yield all(map(_finite_or_nan, self.difference.values())), "difference holds infinity"
        yield self.empty is None or np.isfinite(self.scores[~self.empty]).all(), "scores lacks a trial's"
        if self.copy_rate is not None:
            yield _within(self.copy_rate, 0, 1, nan=True), "copy_rate holds what is no share"
        yield self.rows is None or _within(self.rows, 0, MOST), "rows are out of range"
        yield 0 <= self.seconds < np.inf, "seconds is no time"

    @property
    def arms(self) -> list[str]:
        """(T,) the arm of each trial."""
        return [TRUE] * len(self.n) if self.arm is None else self.arm

    def _asked(self) -> set[tuple[str, int, bool, int, str]] | None:
        """Return the trials (arm, n, flip, want, mode) of the settings, None if they do not tell.

        An axis without a direction, such as ``lr_ensemble``, has no pushed arm.
        """
        identity = self.meta["identity"]
        shots, modes = _listed(identity, "shots", int), _listed(identity, "modes", str)
        if not shots or modes is None:
            return None
        arms = _listed(identity, "arms", str) or [TRUE]
        asked = [arm for arm in arms if arm in ARMS and (arm != PUSHED or PUSHED in self.arms)]
        return {
            (arm, *rest)
            for arm in asked
            for rest in itertools.product(arm_shots(arm, shots), (False, True), (0, 1), modes)
        }


@dataclass(frozen=True, kw_only=True)
class ReportUnit(Record):
    """Report: one experiment on one axis of one layer, a conversation of P sentences with their labels."""

    rows: Int[np.ndarray, " P"]
    """Rows of the split, in the order shown."""
    scores: Float[np.ndarray, " P"]
    """True scores, in standard deviations of held-out sentences."""
    labels: Int[np.ndarray, " P"]
    """True labels, 0 to levels - 1, before they are mirrored."""
    flip: Bool[np.ndarray, " 2"]
    """False, True: the conversation is read with labels as they are, and mirrored."""
    logits: Float[np.ndarray, "2 P A"]
    """Of the digits as they are shown, before the label of each position is."""
    observers: dict[str, Float[np.ndarray, " P"]]
    """Observer -> probability of the upper half of the levels, from the same examples without the model:
    ``own`` (activations of the layer), ``embedding`` (input embeddings), ``words`` (bags of words)."""
    tokens: dict[str, int]
    """As in a control unit."""
    seconds: float
    """Time that the unit took."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the settings tell."""
        identity = meta["identity"]
        return {"A": number(identity, "levels"), "P": number(identity, "report_examples")}

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """Labels are those of the levels, and numbers finite."""
        yield len(self.rows) >= 2, "it has fewer than two positions"
        yield self.flip.tolist() == [False, True], "flip is not False, True"
        yield _within(self.labels, 0, parts["levels"] - 1), "labels are out of range"
        yield _within(self.rows, 0, MOST), "rows are out of range"
        for name in ("logits", "scores"):
            yield np.isfinite(getattr(self, name)).all(), f"{name} is not finite"
        for name, part in self.observers.items():
            yield _within(part, 0, 1), f"observer {name[:20]!r} is no probability"
        yield 0 <= self.seconds < np.inf, "seconds is no time"


# ---------------------------------------------------------------- studies


@dataclass(frozen=True, kw_only=True)
class LoopUnit(Record):
    """Closed loop: one experiment of one mode; every arm, label assignment and target is a conversation."""

    arm: Annotated[list[str], "C"]
    """What is shown as score: ``true``, ``flipped``, ``yoked``, ``random``."""
    flip: Bool[np.ndarray, " C"]
    """Whether labels are shown mirrored."""
    target: Int[np.ndarray, " C"]
    """The label that is asked for, as it is shown: 0 or levels - 1."""
    want: Int[np.ndarray, " C"]
    """1: a high score is wanted, 0: a low one."""
    score: Float[np.ndarray, "C turns"]
    """True score of each turn's sentence, in standard deviations; NaN for an empty reply."""
    label: Int[np.ndarray, "C turns"]
    """Its true label; -1: no score, since the reply was empty or not the sentence asked for."""
    empty: Bool[np.ndarray, "C turns"]
    """Whether the reply held no sentence."""
    complied: Bool[np.ndarray, "C turns"]
    """Whether it is not empty and, in mode repeat, is the sentence asked for."""
    cut: Bool[np.ndarray, "C turns"]
    """Whether a trailing score was cut off the reply."""
    text: Annotated[list[list[str]], "C turns"]
    """What was said."""
    reply_ids: Annotated[list[list[list[int]]], "C turns"] | None = None
    """Its tokens."""
    copy_rate: Float[np.ndarray, "C turns"]
    """Share of the reply that is its longest piece found in a turn before; NaN in the first turn."""
    shown: Int[np.ndarray, "C turns-1"]
    """Label that was shown after each turn but the last; -1: that there is no score."""
    rows: Int[np.ndarray, " N+1"]
    """Rows of the split: the examples, then the sentence to repeat."""
    sentence: str
    """The one to repeat; empty in mode write."""
    tokens: dict[str, int]
    """Forwarded: ``opening``, ``added`` (messages), ``written``, forward ``calls``; ``dropped``: written, but
    no part of a sentence; ``replayed``: if every turn had read its conversation anew."""
    seconds: float | None = None
    """Time that the unit took."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the settings tell."""
        identity = meta["identity"]
        arms = _listed(identity, "arms", str)
        return {
            "C": None if arms is None else 4 * len(arms),
            "turns": number(identity, "turns"),
            "N": number(identity, "examples"),
        }

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """Every conversation is there once, and scores are numbers where there is a sentence."""
        arms = _listed(self.meta["identity"], "arms", str) or []
        cells = list(zip(self.arm, self.flip.tolist(), self.want.tolist(), strict=True))
        asked = set(itertools.product(arms, (False, True), (0, 1)))
        yield len(set(cells)) == len(cells) and set(cells) == asked, "its arms are not those of its settings"
        yield ((self.target > 0) ^ self.flip == self.want).all(), "target, flip and want do not fit together"
        yield _within(self.target, 0, parts["levels"] - 1), "target is out of range"
        for name in ("label", "shown"):
            yield _within(getattr(self, name), -1, parts["levels"] - 1), f"{name} is out of range"
        yield np.isfinite(self.score[~self.empty]).all(), "score lacks a turn's"
        yield _finite_or_nan(self.score), "score holds infinity"
        yield not (self.complied & self.empty).any(), "an empty reply is said to comply"
        yield _within(self.copy_rate, 0, 1, nan=True), "copy_rate holds what is no share"
        yield _within(self.rows, 0, MOST), "rows are out of range"


@dataclass(frozen=True, kw_only=True)
class CausalAnswers:
    """What one experiment of a causal report holds."""

    rows: Int[np.ndarray, " M"]
    """Rows of the split: N examples, then J test sentences."""
    labels: Int[np.ndarray, " N"]
    """Shown with the examples, 0 or 1."""
    lean: Float[np.ndarray, "6 2 J 2"]
    """Logit of digit 1 minus that of digit 0: arm, mapping (label 1 is +v, or -v), test sentence, sign of the
    push; the arms are ``target``, ``random``, ``random_norm``, ``shuffled``, ``query_only``, ``clean``."""

    def whole(self) -> Iterator[tuple[object, str]]:
        """Labels are 0 and 1, logits finite."""
        yield np.isin(self.labels, (0, 1)).all(), "labels are not 0 and 1"
        yield len(self.rows) == len(self.labels) + self.lean.shape[2], "rows do not fit labels and lean"
        yield _within(self.rows, 0, MOST), "rows are out of range"
        yield np.isfinite(self.lean).all(), "lean is not finite"


@dataclass(frozen=True, kw_only=True)
class CausalExperiment(CausalAnswers, Record):
    """Causal report: one experiment on one axis of one layer."""

    tokens: dict[str, int] | None = None
    """As in a control unit."""
    seconds: float | None = None
    """Time that the experiment took."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the settings tell."""
        identity = meta["identity"]
        tests = 1 if identity.get("repeat_sentence") is True else number(identity, "n_test")
        return {"N": number(identity, "n_examples"), "J": tests}

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """See CausalAnswers."""
        return self.whole()


@dataclass(frozen=True, kw_only=True)
class CausalStudy(Record):
    """Causal report of an earlier version: all experiments on one axis of one layer, taken over by a run."""

    experiments: list[CausalAnswers]
    """In order."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the settings tell."""
        return CausalExperiment.known(meta)

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """Every experiment is whole."""
        yield self.experiments, "it has no experiments"
        for one in self.experiments:
            yield from one.whole()


@dataclass(frozen=True, kw_only=True)
class SteeringAnswers:
    """What one experiment of a steering curve holds."""

    rows: Int[np.ndarray, " M"]
    """Rows of the split: the examples, then J test sentences."""
    measured: Float[np.ndarray, "J Q L"]
    """Score of a test sentence in the measuring conversation, by strength and layer; NaN where a layer has no
    such axis."""
    in_report: Float[np.ndarray, "2 J Q L"]
    """The same in the report prompt, with labels as they are and mirrored."""
    lean: Float[np.ndarray, "2 J Q"]
    """Logit of the digit that stands for the upper half minus that of the other."""

    def whole(self) -> Iterator[tuple[object, str]]:
        """Logits are finite, scores as well where there is an axis."""
        yield _within(self.rows, 0, MOST), "rows are out of range"
        yield np.isfinite(self.lean).all(), "lean is not finite"
        for name in ("measured", "in_report"):
            scores = getattr(self, name)
            yield _finite_or_nan(scores), f"{name} holds infinity"
            yield np.isfinite(scores[..., 0]).all(), f"{name} lacks scores of the pushed layer"


@dataclass(frozen=True, kw_only=True)
class SteeringExperiment(SteeringAnswers, Record):
    """Steering curve: one experiment on one axis of one layer."""

    tokens: dict[str, int] | None = None
    """As in a control unit."""
    seconds: float | None = None
    """Time that the experiment took."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the settings tell."""
        identity = meta["identity"]
        tests, alphas = number(identity, "n_test"), identity.get("alphas")
        sizes = number(identity, "n_examples"), tests
        whole = None if None in sizes else sum(size for size in sizes if size)
        return {"J": tests, "Q": len(alphas) if isinstance(alphas, (list, tuple)) else None, "M": whole}

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """See SteeringAnswers."""
        return self.whole()


@dataclass(frozen=True, kw_only=True)
class SteeringStudy(Record):
    """Steering curve of an earlier version: all experiments on one axis of one layer, taken over by a run."""

    experiments: list[SteeringAnswers]
    """In order."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the settings tell."""
        return SteeringExperiment.known(meta)

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """Every experiment is whole."""
        yield self.experiments, "it has no experiments"
        for one in self.experiments:
            yield from one.whole()


@dataclass(frozen=True, kw_only=True)
class EvasionExperiment(Record):
    """Evasion: the states of one experiment; probes read them anew each time."""

    pooled: Float[np.ndarray, "2 2 2 P L D"]
    """Test sentences read: label assignment, wanted side, class, sentence, layer."""
    written: Float[np.ndarray, "2 2 W L D"]
    """Sentences written: label assignment, wanted side, reply, layer; NaN where a reply was empty."""
    texts: Annotated[list[str], "replies"]
    """The replies in the order of ``written``."""
    shown: Int[np.ndarray, " N"]
    """Rows of the split of the examples."""
    tests: Int[np.ndarray, "2 P"]
    """Rows of the split of the test sentences: class 0, class 1."""
    class_1_high: bool
    """Whether class 1 lies on the high side of the axis."""
    tokens: dict[str, int]
    """As in a control unit."""

    @staticmethod
    def known(meta: Mapping[str, Any]) -> dict[str, int | None]:
        """Return the sizes that the settings and the model tell."""
        identity = meta["identity"]
        tests, layers = number(identity, "n_test"), _listed(identity, "layers", int)
        replies = number(identity, "n_written")
        return {
            "P": None if tests is None else tests // 2,
            "W": replies,
            "replies": None if replies is None else 4 * replies,
            "N": number(identity, "n_examples"),
            "L": None if layers is None else len(layers),
            "D": number(meta, "hidden_size"),
        }

    def rules(self, parts: Parts) -> Iterator[tuple[object, str]]:
        """States are finite, and sentences differ."""
        yield np.isfinite(self.pooled).all(), "pooled is not finite"
        yield _finite_or_nan(self.written), "written holds infinity"
        rows = [*self.shown.tolist(), *self.tests.ravel().tolist()]
        yield all(0 <= row < MOST for row in rows), "shown or tests are out of range"
        yield len(set(rows)) == len(rows), "shown and tests name a sentence twice"


# ---------------------------------------------------------------- kinds of files

_NUMBER = r"(?:0|[1-9]\d{0,4})"  # spelled in one way only, or a file could stand there under two names
_AXIS = rf"(?P<axis>[a-z_]+\d*)_layer(?P<layer>{_NUMBER})"
_LEVELS = rf"levels(?P<levels>{_NUMBER})"
_EXP = rf"exp(?P<exp>{_NUMBER})"
_NUMBERS = ("layer", "exp", "levels")


@dataclass(frozen=True)
class Kind:
    """One kind of file: its names, what it holds, and the command that makes it."""

    name: str
    """In words."""
    pattern: str
    """Regular expression of its names; its groups are the parts that a name has."""
    record: type[Record]
    """What it holds."""
    script: str = "main_prep.py"
    """The script that makes it."""
    flags: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Studies: setting in the identity -> flag of the script."""
    count: str = ""
    """Flag for one past the last experiment."""
    from_first: bool = False
    """Whether experiments start at 0, so that those below one that is there are missing."""
    beside: str = ""
    """The kind beside which files of this one are made, by the same command."""
    size: str = ""
    """Control and report: the setting that ``--n_train`` stands for."""

    @property
    def is_study(self) -> bool:
        """Whether it is neither preparation, nor control, nor report."""
        return bool(self.flags)

    def with_exp(self, name: str, exp: int) -> str:
        """Return the name of another experiment beside the file ``name`` of this kind."""
        match = re.fullmatch(self.pattern, name)
        assert match, name
        return f"{name[: match.start('exp')]}{exp}{name[match.end('exp') :]}"

    def parts(self, name: str) -> Parts | None:
        """Return what a file name says, None if it is none of this kind; without levels they are 2."""
        match = re.fullmatch(self.pattern, name)
        if match is None:
            return None
        found: dict[str, Any] = {key: text for key, text in match.groupdict().items() if text is not None}
        found |= {key: int(found[key]) for key in _NUMBERS if key in found}
        return {"levels": 2, **found} if "exp" in found else found


_STEERED = {"axis": "--axis", "layer": "--layer", "n_examples": "--n_examples", "n_test": "--n_test"}
_CAUSAL = {**_STEERED, "alpha": "--alpha"}
_REPEATED = {**_CAUSAL, "repeat_sentence": "--repeat_sentence"}
_CURVE = {**_STEERED, "alphas": "--alphas"}
_LOOP = {
    "axis": "--axes", "layer": "--layer", "levels": "--levels", "turns": "--loop", "arms": "--loop_arms",
    "loop_mode": "--loop_mode", "examples": "--loop_examples",
}  # fmt: skip
CONTROL, REPORT = "imit", "pred"
"""How files and flags of the two kinds of units of work begin."""


def _units(prefix: str, name: str, record: type[Record], script: str, size: str) -> Kind:
    pattern = rf"{prefix}_{_AXIS}(_{_LEVELS})?_{_EXP}\.pkl"
    return Kind(name, pattern, record, script, count=f"--{prefix}_exp_end", size=size)


UNIT_KINDS = {
    CONTROL: _units(CONTROL, "control", ControlUnit, "main_imitexp.py", "shots"),
    REPORT: _units(REPORT, "report", ReportUnit, "main_predexp.py", "report_examples"),
}


def _steered(name: str, stem: str, record: type[Record], flags: Mapping[str, str]) -> Kind:
    """Return a kind of the causal studies; an earlier version had all experiments of a layer in one file."""
    script = "-m tasks.steering_curve" if stem == "steering" else "-m tasks.causal_report"
    if record in (CausalStudy, SteeringStudy):
        pattern, now = rf"study_{stem}_{_AXIS}\.pkl", name.removesuffix(", in one file")
        return Kind(name, pattern, record, script, flags, "--n_experiments", beside=now)
    pattern = rf"study_{stem}_{_EXP}_{_AXIS}\.pkl"
    return Kind(name, pattern, record, script, flags, "--n_experiments", from_first=True)


KINDS: tuple[Kind, ...] = (
    Kind("split", r"split\.pkl", Split),
    Kind("hidden", rf"hidden(_(?P<method>mean|last))?_layer(?P<layer>{_NUMBER})\.pkl", Hidden),
    Kind("tokens", rf"hidden_(?P<method>each)_layer(?P<layer>{_NUMBER})\.pkl", HiddenEach),
    Kind("embedding", r"hidden_embedding\.pkl", Embedding),
    Kind("axes", rf"axes_layer(?P<layer>{_NUMBER})\.pkl", Axes),
    *UNIT_KINDS.values(),
    Kind(
        "closed loop", rf"study_loop_(?P<loop_mode>write|repeat)_({_LEVELS}_)?{_EXP}_{_AXIS}\.pkl", LoopUnit,
        "neurofeedback.py", _LOOP, "--n_experiments", from_first=True,
    ),
    Kind(
        "closed loop, donor",
        rf"study_loop_(?P<loop_mode>write|repeat)_({_LEVELS}_)?donor(?P<exp>{_NUMBER})_{_AXIS}\.pkl",
        LoopUnit, "neurofeedback.py", _LOOP, "--n_experiments", beside="closed loop",
    ),
    Kind(
        "evasion", rf"study_evasion_{_EXP}_{_AXIS}\.pkl", EvasionExperiment, "-m tasks.evasion",
        {**_STEERED, "layers": "--layers", "n_written": "--n_written"}, "--n_experiments", from_first=True,
    ),
    _steered("causal report, one sentence", "causal_repeated", CausalExperiment, _REPEATED),
    _steered("causal report", "causal", CausalExperiment, _CAUSAL),
    _steered("steering curve", "steering", SteeringExperiment, _CURVE),
    _steered("causal report, one sentence, in one file", "causal_repeated", CausalStudy, _REPEATED),
    _steered("causal report, in one file", "causal", CausalStudy, _CAUSAL),
    _steered("steering curve, in one file", "steering", SteeringStudy, _CURVE),
)  # fmt: skip
"""All kinds; a name belongs to the first one whose pattern it has."""


def kind_of(name: str) -> Kind | None:
    """Return the kind of a file by its name, None for other files."""
    return next((kind for kind in KINDS if kind.parts(name) is not None), None)


# ---------------------------------------------------------------- the one check


def check(path: Path, kind: Kind | None, record: Mapping[str, Any]) -> Sizes:
    """Return the sizes by letter of a record; DamagedFile (naming the field) if it is not what ``kind`` says.

    Args:
        path: of the file, whose name says which of its kind it is.
        kind: see kind_of; of None, only the meta data are checked.
        record: what the file holds.
    """
    try:
        return check_record(path.name, kind, record)
    except Wrong as error:
        raise DamagedFile(path, str(error)) from None


def check_record(name: str, kind: Kind | None, record: Mapping[str, Any]) -> Sizes:
    """Return the sizes of what a file of ``name`` and ``kind`` holds; Wrong (naming the field) if it may not.

    The meta data must be plain and of a bounded size, because they are compared, printed and shown on pages.
    """
    meta = record.get("meta")
    need(isinstance(meta, dict) and isinstance(meta.get("identity"), dict), "it has no meta data")
    assert isinstance(meta, dict)
    plain = _parts(meta, META_PARTS) > 0
    need(plain, "its meta data are too deep, too many, or no plain data")
    check_fields(meta, Meta, {}, "meta data: ")
    for size, most in (("n_layers", MOST_LAYERS), ("hidden_size", MOST)):
        need(meta.get(size) is None or 0 < meta[size] <= most, f"meta data: {size} is out of range")
    return {} if kind is None else _check_content(kind, kind.parts(name) or {}, record)


def _check_content(kind: Kind, parts: Parts, record: Mapping[str, Any]) -> Sizes:
    identity = record["meta"]["identity"]
    if "axis" in parts:
        for part, value in parts.items():
            said = identity.get(part)
            need(type(said) is type(value) and said == value, f"its settings say {part} {str(said)[:40]}")
    need(identity.get("method") == parts.get("method"), "its settings say another method")
    need(parts.get("levels", 2) in LEVELS, f"{parts.get('levels')} levels")
    known = kind.record.known(record["meta"])
    sizes = {letter: size for letter, size in known.items() if size is not None}
    check_fields(record, kind.record, sizes)
    for right, what in kind.record.of(record).rules(parts):
        need(right, what)
    return sizes


def _parts(value: Any, left: int, depth: int = 20) -> int:
    """Return ``left`` less the parts of plain data, 0 or less if they are too many, too deep or not plain."""
    if isinstance(value, (str, bytes)):
        return left - 1 - len(value) // 100
    if value is None or type(value) in (bool, int, float):
        return left - 1
    if type(value) not in (list, tuple, dict) or depth == 0:
        return 0
    items = value
    if type(value) is dict:
        if not all(type(key) is str for key in value):
            return 0
        items = [*value, *value.values()]
    for item in items:
        if left <= 0:
            return 0
        left = _parts(item, left - 1, depth - 1)
    return left
