"""Check a dataset: balance, lengths, duplicates, and what the words alone give away.

Reads   data/<key>/sentences.csv
Prints  a table of figures; exit code 1 if a hard rule is violated
Try     python -m data.check commonsense
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.base.script import script
from data.load import SHIPPED, Dataset, read_dataset

NEAR = 0.6
"""Share of words in common (Jaccard) from which two sentences of different groups are near-duplicates."""
LENGTH_PROBE = (0.45, 0.55)
"""Accuracy of a probe on lengths alone that counts as chance."""
WORD = r"[a-z0-9']+"


@dataclass(frozen=True)
class Rules:
    """Hard rules for one dataset; what has no rule is only reported."""

    sentences: int = 0
    words: tuple[int, int] = (1, 1000)
    strict: bool = True
    """Balance, repeats across groups and the length probe must be in order."""
    templates: bool = False
    """Sentences share phrasings by design, so near-duplicates are only counted."""


RULES = {
    "commonsense": Rules(1200, (6, 25)),
    "true_false": Rules(2000, (3, 25), templates=True),
    "sycophancy": Rules(1200, (12, 40)),
    "emotion": Rules(1200, (8, 28)),
}
OTHER = Rules(strict=False)


@dataclass
class Findings:
    """What the check measured, and which hard rules are violated."""

    figures: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def rule(self, ok: bool, text: str) -> None:
        """Note a violation unless ``ok``."""
        if not ok:
            self.violations.append(text)


def check(dataset: Dataset) -> Findings:
    """Measure a dataset against its rules; published and custom sets are only measured."""
    rules, found = RULES.get(dataset.key, OTHER), Findings()
    for part in (_balance, _lengths, _duplicates, _probes):
        part(dataset, rules, found)
    return found


def word_set(sentence: str) -> frozenset[str]:
    """Return the lower-case words of a sentence."""
    return frozenset(re.findall(WORD, sentence.lower()))


def _balance(dataset: Dataset, rules: Rules, found: Findings) -> None:
    zeros, ones = np.bincount(dataset.labels, minlength=2)[:2]
    found.figures["sentences of label 0 / 1"] = f"{zeros} / {ones}"
    found.figures["groups"] = str(len(set(dataset.groups.tolist())))
    found.rule(zeros == ones or not rules.strict, f"the classes are not balanced: {zeros} / {ones}")
    enough = zeros + ones >= rules.sentences
    found.rule(enough, f"{zeros + ones} sentences, {rules.sentences} are needed")


def _lengths(dataset: Dataset, rules: Rules, found: Findings) -> None:
    for unit, size in (("words", lambda s: len(s.split())), ("characters", len)):
        lengths = np.array([size(sentence) for sentence in dataset.sentences])
        for label in (0, 1):
            own = lengths[dataset.labels == label]
            found.figures[f"{unit}, label {label}: mean (sd), range"] = (
                f"{own.mean():.2f} ({own.std():.2f}), {own.min()} to {own.max()}"
            )
        if unit == "words":
            low, high = rules.words
            inside = low <= lengths.min() and lengths.max() <= high
            found.rule(inside, f"sentences must have {low} to {high} words")


def _duplicates(dataset: Dataset, rules: Rules, found: Findings) -> None:
    plain = [" ".join(re.findall(WORD, sentence.lower())) for sentence in dataset.sentences]
    copies = len(plain) - len(set(plain))
    found.figures["repeats (case and punctuation aside)"] = str(copies)
    found.rule(copies == 0 or not rules.strict, f"{copies} sentences are there twice")
    near, largest = near_duplicates(dataset)
    found.figures["largest share of words in common across groups"] = f"{largest:.2f}"
    found.figures[f"pairs across groups that share {NEAR:.0%} of their words"] = str(len(near))
    for a, b in near[:10] if rules.strict and not rules.templates else ():
        found.violations.append(
            f"near-duplicates in different groups: {dataset.ids[a]} and {dataset.ids[b]}: "
            f"{dataset.sentences[a]!r}, {dataset.sentences[b]!r}"
        )


def near_duplicates(dataset: Dataset) -> tuple[list[tuple[int, int]], float]:
    """Return pairs of rows in different groups that share NEAR of their words, and the largest share."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(analyzer=word_set, binary=True)
    words = counter.fit_transform(dataset.sentences).astype(np.float32)
    sizes = np.asarray(words.sum(axis=1)).ravel()
    common = (words @ words.T).toarray()
    jaccard = common / (sizes[:, None] + sizes[None, :] - common)
    jaccard[dataset.groups[:, None] == dataset.groups[None, :]] = 0.0
    rows, columns = np.nonzero(np.triu(jaccard >= NEAR))
    return list(zip(rows.tolist(), columns.tolist(), strict=True)), float(jaccard.max())


def _probes(dataset: Dataset, rules: Rules, found: Findings) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    lengths = np.array([[len(s), len(s.split())] for s in dataset.sentences], float)
    length = probe(make_pipeline(StandardScaler(), LogisticRegression()), lengths, dataset)
    low, high = LENGTH_PROBE
    found.figures["probe on lengths"] = f"{length:.1%}"
    near_chance = low <= length <= high or not rules.strict
    found.rule(near_chance, f"lengths alone give the label in {length:.1%}: must be near 50 %")
    words = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=2000))
    found.figures["probe on word counts"] = f"{probe(words, dataset.sentences, dataset):.1%}"


def probe(model: object, features: object, dataset: Dataset) -> float:
    """Return the accuracy of a probe in 5-fold cross-validation that keeps groups whole."""
    from sklearn.model_selection import GroupKFold, cross_val_score

    folds = GroupKFold(n_splits=5, shuffle=True, random_state=0)
    scores = cross_val_score(model, features, dataset.labels, groups=dataset.groups, cv=folds)
    return float(scores.mean())


@script
def main(argv: Sequence[str] | None = None) -> int:
    """Check one dataset or all shipped ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("key", help=f"all (shipped), {', '.join(SHIPPED)}, published/<key>, custom/<name>")
    args = parser.parse_args(argv)
    bad = False
    for key in SHIPPED if args.key == "all" else (args.key,):
        found = check(read_dataset(key))
        print(key)
        for name, value in found.figures.items():
            print(f"  {name:52s} {value}")
        for violation in found.violations:
            print(f"  VIOLATION {violation}")
        bad = bad or bool(found.violations)
    return int(bad)


if __name__ == "__main__":
    raise SystemExit(main())
