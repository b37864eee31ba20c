"""What a written sentence tells by itself, without the conversation that it was written in.

An effect of control can be carried by the text (the model chose words that lie high on the axis) or by the
context (the same words are held in another state). Each sentence is read again in the conversation that the
axes were fitted in, and given to two probes that know less than the layer: its words, and its mean input
embedding.

Shape letters: T sentences of one unit   U different ones   K axes   L layers   D hidden size
M sentences that fit the axes   F features
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from analysis.base.errors import UserError
from analysis.engine.prefix_tree import PrefixTree
from analysis.engine.request import Counters, Request, stack_pooled
from analysis.experiments.preparation import mean_embeddings
from analysis.experiments.study import Study
from analysis.experiments.trials import axis_turns
from analysis.process_prompts import Encoded, Prompter
from analysis.results.store import UnitKey, read
from utils import LoadedModel

PENALTIES = tuple(10.0**k for k in range(-2, 7))
"""Of the ridge regressions, in units of the features' mean square: chosen by cross-validation over groups."""
FOLDS = 5


@dataclass(frozen=True)
class LinearProbe:
    """Predicts the score on an axis from features of the text alone."""

    weights: np.ndarray
    """(F,) float64."""
    center: np.ndarray
    """(F,) mean of the fitting features."""
    middle: float
    scale: float
    """Mean and standard deviation of the predictions for held-out sentences."""

    def score(self, features: np.ndarray) -> np.ndarray:
        """Return (T,) float32 from features (T, F), in standard deviations of held-out predictions."""
        predicted = (features - self.center) @ self.weights
        return ((predicted - self.middle) / self.scale).astype(np.float32)


def fit_probe(
    fitting: np.ndarray, wanted: np.ndarray, groups: np.ndarray, held_out: np.ndarray
) -> LinearProbe | None:
    """Return a ridge regression of scores on features; None if it predicts the same for every sentence.

    Args:
        fitting: (M, F) features of the sentences that fitted the axes.
        wanted: (M,) their scores on the axis.
        groups: (M,) sentences of one group stay on one side of a fold.
        held_out: (N, F) features of other sentences, which only set the scale.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold

    center = fitting.mean(axis=0)
    features = fitting - center
    size = float((features**2).sum(axis=1).mean())
    if size == 0:
        return None
    folds = min(FOLDS, len(np.unique(groups)))
    splits = list(GroupKFold(folds).split(features, wanted, groups))
    penalties = [size * penalty for penalty in PENALTIES]
    weights = RidgeCV(alphas=penalties, cv=splits).fit(features, wanted).coef_
    predicted = (held_out - center) @ weights
    scale = float(predicted.std())
    return LinearProbe(weights, center, float(predicted.mean()), scale) if scale > 0 else None


class TextProbes:
    """Reads sentences again by themselves, and asks the probes of the text."""

    def __init__(self, lm: LoadedModel, study: Study) -> None:
        self.lm, self.study = lm, study
        self.prompter = Prompter(lm.tokenizer, lm.name)
        self.fitted = lru_cache(maxsize=None)(self._fit)

    def read(
        self, tree: PrefixTree, key: UnitKey, texts: Sequence[str], score: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Return what the T ``texts`` of a unit tell by themselves, and the tokens forwarded for it.

        Args:
            tree: the engine.
            key: the unit.
            texts: T sentences, some of them empty or equal.
            score: from states (U, L, D) of all layers to scores (U, K).

        Returns:
            ``neutral`` (T, K), scores of the text read in the neutral conversation; ``words`` and
            ``embedding`` (T,), what the probes predict for the targeted axis. NaN for an empty text, and for
            one that cannot be told apart from its surroundings.
        """
        encoded = {text: one for text in dict.fromkeys(texts) if text and (one := self._encoded(text))}
        before = Counters(**asdict(tree.total))
        requests = [Request(one.ids, one.spans) for one in encoded.values()]
        readings = tree.read(requests, self.study.layers) if requests else []
        after = asdict(tree.total)
        spent = {name: after[name] - count for name, count in asdict(before).items()}
        found = self._judge(key, encoded, stack_pooled(readings), score) if readings else {}
        place = {text: i for i, text in enumerate(encoded)}
        rows = np.array([place.get(text, -1) for text in texts])
        n_axes = len(self.study.axes(key.layer).names) + 1  # and lr_ensemble
        columns = {"neutral": (len(texts), n_axes), "words": (len(texts),), "embedding": (len(texts),)}
        filled = {name: np.full(shape, np.nan, np.float32) for name, shape in columns.items()}
        for name, values in found.items():
            filled[name][rows >= 0] = values[rows[rows >= 0]]
        return filled, spent

    def _judge(
        self,
        key: UnitKey,
        encoded: Mapping[str, Encoded],
        pooled: np.ndarray,
        score: Callable[[np.ndarray], np.ndarray],
    ) -> dict[str, np.ndarray]:
        """Return the scores (U, K) of U different texts, and what the probes say (U,)."""
        by_words, by_embedding = self.fitted(key.layer, key.axis)
        found = {"neutral": score(pooled)}
        if by_words is not None:
            found["words"] = by_words.score(self.count_words(list(encoded)))
        if by_embedding is not None:
            embedded = mean_embeddings(self.lm, list(encoded.values()))
            found["embedding"] = by_embedding.score(embedded.astype(np.float64))
        return found

    def _encoded(self, text: str) -> Encoded | None:
        """Return the text in the neutral conversation, None if its tokens merge with what is around it."""
        try:
            return self.prompter.encode(axis_turns(self.study.prompts, text))
        except UserError:  # a model may write anything; such a text is counted as missing
            return None

    def _fit(self, layer: int, axis: str) -> tuple[LinearProbe | None, LinearProbe | None]:
        """Return the probes of one axis: of words, and of input embeddings."""
        study, fitting, others = self.study, self.study.axis_rows, self.study.trial_rows
        wanted = study.scores(layer, axis)[fitting].astype(np.float64)
        groups = self._groups[fitting]
        embedded = read(study.store.embedding, study.identity)["hidden"].astype(np.float64)
        counted = self._counted
        by_words = fit_probe(counted[fitting], wanted, groups, counted[others])
        return by_words, fit_probe(embedded[fitting], wanted, groups, embedded[others])

    @cached_property
    def _groups(self) -> np.ndarray:
        groups: np.ndarray = read(self.study.store.split, self.study.identity)["groups"]
        return groups

    @cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import CountVectorizer

        counter = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float64)
        return counter.fit([self.study.sentences[row] for row in self.study.axis_rows])

    @cached_property
    def _counted(self) -> np.ndarray:
        return self.count_words(self.study.sentences)

    def count_words(self, texts: Sequence[str]) -> np.ndarray:
        """Return (T, F): 1 where a text holds a word of the fitting sentences."""
        counted: np.ndarray = self._vectorizer.transform(texts).toarray()
        return counted
