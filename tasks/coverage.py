"""How often the intervals of analysis/statistics hold a known truth: the table of docs/statistics.md.

Reads   nothing
Writes  nothing; prints one Markdown table
Try     python -m tasks.coverage --draws 400

Studies are simulated with a truth that is known for new experiments and new sentences: normal data, data with
a skewness of 1, and what the methods are not made for (lognormal data, high wanted twice as variable as low).
Sentences have an effect of their own, the same in every experiment that shows them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

SIZES = (6, 12, 30, 100)
KINDS = ("normal", "skewed", "lognormal", "unequal")
GROUPS = 300
"""Sentence groups of a pool: 600 sentences in pairs."""
LEVEL, SLOPE, NOISE = 0.5, 0.2, 0.3
"""Variances of a score: of its experiment, of how far its experiment follows the wish, and the rest."""
SENTENCES = (0.0, 0.15, 0.3)
Coverage = Callable[[np.random.Generator, int, int], float]
"""Takes a generator, the number of experiments and of studies; returns the share that holds the truth."""


def numbers(rng: np.random.Generator, kind: str, shape: Sequence[int]) -> np.ndarray:
    """Return numbers of mean 0 and variance 1."""
    if kind == "skewed":
        return (rng.gamma(4, size=shape) - 4) / 2
    if kind == "lognormal":
        return (rng.lognormal(size=shape) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    return rng.normal(size=shape)


# ---------------------------------------------------------------- control


def control_scores(
    rng: np.random.Generator, kind: str, d: float, experiments: int, studies: int, sentence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return high and low (E, 2, C) of variance 1 whose true d is ``d``, and the test sentences' groups (E, C)."""

    def part(variance: float, flips: int = 1) -> np.ndarray:
        return np.sqrt(variance) * numbers(rng, kind, (experiments, flips, studies))

    groups = rng.integers(GROUPS, size=(experiments, studies))
    effect = sentence * numbers(rng, kind, (GROUPS, studies))
    slope = part(SLOPE) + np.take_along_axis(effect, groups, axis=0)[:, None]
    level, sizes = part(LEVEL), (1.0, 1.0)
    if kind == "unequal":  # of high and low, with the same mean variance
        sizes = (np.sqrt(1.6), np.sqrt(0.4))
    high, low = (
        side * d / 2 + size * (level + side * slope + part(NOISE - sentence**2, 2))
        for side, size in zip((1, -1), sizes, strict=True)
    )
    return high, low, groups


def control_coverage(
    name: str, kind: str, d: float, sentence: float, rng: np.random.Generator, experiments: int, studies: int
) -> float:
    """Coverage of ``d``, ``dz`` or ``change``."""
    from analysis.statistics.effects import Pairs, unit_labels

    high, low, groups = control_scores(rng, kind, d, experiments, studies, sentence)
    variance = 4 * (SLOPE + sentence**2) + 2 * (NOISE - sentence**2)
    if kind == "unequal":  # level (a - b), slope (a + b), noise, with a^2 + b^2 = 2
        both = 2 * np.sqrt(1.6 * 0.4)
        variance = LEVEL * (2 - both) + (SLOPE + sentence**2) * (2 + both) + 2 * (NOISE - sentence**2)
    truth = {"d": d, "dz": d / np.sqrt(variance), "change": d}[name]
    found = getattr(Pairs(high, low, unit_labels(groups, experiments, studies)), name)()
    known = np.isfinite(found.low)
    return float(((found.low <= truth) & (truth <= found.high))[known].mean())


def cosine_coverage(
    kind: str, cosine: float, size: float, rng: np.random.Generator, experiments: int, studies: int
) -> float:
    """Coverage of the cosine of a change of 576 coordinates, ``size`` deviations of one coordinate long."""
    from analysis.statistics.directions import cosine_interval

    mean, axis, hits = np.zeros(576), np.eye(576)[0], 0
    mean[:2] = size * cosine, size * np.sqrt(1 - cosine**2)
    for _ in range(studies):
        found = cosine_interval(mean + numbers(rng, kind, (experiments, 576)), axis)
        hits += found.low <= cosine + 1e-12 and cosine <= found.high
    return hits / studies


# ---------------------------------------------------------------- shares


def shown(rng: np.random.Generator, experiments: int, k: int) -> np.ndarray:
    """Return the groups (E, k) of the sentences that experiments draw from a pool without replacement."""
    return rng.random((experiments, 2 * GROUPS)).argpartition(k, axis=1)[:, :k] // 2


def accuracy_coverage(
    kind: str, skill: float, sentence: float, k: int, rng: np.random.Generator, experiments: int, studies: int
) -> float:
    """Coverage of the share of right answers; experiments differ by a deviation of 0.05."""
    from analysis.statistics.crossed import crossed_mean

    def chance(parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return np.clip(skill + sentence * parts[0] + 0.05 * parts[1], 0, 1)

    far = np.random.default_rng(0)
    truth = float(chance((numbers(far, kind, (10**6,)), numbers(far, kind, (10**6,)))).mean())
    hits = 0
    for _ in range(studies):
        groups = shown(rng, experiments, k)
        hard = numbers(rng, kind, (GROUPS,))[groups]
        right = rng.random(groups.shape) < chance((hard, numbers(rng, kind, (experiments, 1))))
        found = crossed_mean(right[None].astype(np.float64), groups, share=True)
        hits += bool(found.low[0] <= truth <= found.high[0])
    return hits / studies


def auroc_coverage(
    kind: str, distance: float, sentence: float, rng: np.random.Generator, experiments: int, studies: int
) -> float:
    """Coverage of the AUROC of 8 + 8 sentences ranked within each experiment, ``distance`` deviations apart."""
    from analysis.statistics.crossed import auroc_values, crossed_mean

    def score(side: float, effect: np.ndarray, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        return side * distance + sentence * effect + np.sqrt(1 - sentence**2) * numbers(rng, kind, shape)

    far, size = np.random.default_rng(0), (10**6,)
    one, zero = (score(side, numbers(far, kind, size), size, far) for side in (1, 0))
    truth = float((np.searchsorted(np.sort(zero), one) / size[0]).mean())
    hits = 0
    for _ in range(studies):
        groups = [np.argsort(rng.random((experiments, GROUPS)), axis=1)[:, :8] for _ in range(2)]
        sides = [
            score(side, numbers(rng, kind, (GROUPS,))[group], group.shape, rng)
            for side, group in zip((1, 0), groups, strict=True)
        ]
        values = np.concatenate(auroc_values(*sides), axis=1)
        found = crossed_mean(values[None], np.concatenate(groups, axis=1), share=True)
        hits += bool(found.low[0] <= truth <= found.high[0])
    return hits / studies


def slope_coverage(
    kind: str, slope: float, rng: np.random.Generator, experiments: int, studies: int
) -> float:
    """Coverage of the mean of one number an experiment, such as the slope of a closed loop."""
    from analysis.statistics.crossed import crossed_mean

    found = crossed_mean(slope + numbers(rng, kind, (studies, experiments, 1)))
    return float(((found.low <= slope) & (slope <= found.high)).mean())


# ---------------------------------------------------------------- table


def rows(kind: str) -> Iterator[tuple[str, Coverage]]:
    """Yield the name of a row and its simulation."""
    for sentence in SENTENCES:
        for d in (0.0, 0.5, 2.0):
            for name, title in (("d", "d"), ("dz", "d_z"), ("change", "mean change")):
                if name != "change" or d == 0:
                    run = partial(control_coverage, name, kind, d, sentence)
                    yield f"{title}, true d {d:g}, sentences {sentence:g}", run
    if kind == "unequal":
        return
    for cosine, size in ((1.0, 2.0), (1.0, 5.0), (0.7, 2.0), (0.7, 5.0), (0.3, 5.0), (0.0, 2.0)):
        yield f"cosine {cosine:g}, change {size:g}", partial(cosine_coverage, kind, cosine, size)
    for sentence in SENTENCES:
        for skill in (0.5, 0.6, 0.8):
            title = f"accuracy {skill:g} (gain {skill - 0.5:g}), 64 places, sentences {sentence:g}"
            yield title, partial(accuracy_coverage, kind, skill, sentence, 64)
        yield f"causal accuracy 0.7, 4 sentences, sentences {sentence:g}", partial(
            accuracy_coverage, kind, 0.7, sentence, 4
        )
        for distance in (0.0, 1.0, 2.0):
            title = f"AUROC of {distance:g} deviations, sentences {sentence:g}"
            yield title, partial(auroc_coverage, kind, distance, sentence)
    yield "loop slope", partial(slope_coverage, kind, 0.1)


def table(kinds: Sequence[str], draws: int, seed: int) -> Iterator[str]:
    """Yield the lines of the table; vectorised rows get ten times as many studies."""
    yield f"| data | interval of | {' | '.join(f'E = {size}' for size in SIZES)} |"
    yield f"|---|---|{'---|' * len(SIZES)}"
    for kind in kinds:
        for number, (title, coverage) in enumerate(rows(kind)):
            cells = []
            for size in SIZES:
                rng = np.random.default_rng([seed, KINDS.index(kind), number, size])
                many = coverage.func in (control_coverage, slope_coverage)  # type: ignore[attr-defined]
                cells.append(f"{coverage(rng, size, 10 * draws if many else draws):.3f}")
            yield f"| {kind} | {title} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="simulated studies of a cell (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulations (default: 0)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of data (default: all)")
    args = parser.parse_args(argv)
    for line in table(args.kinds, args.draws, args.seed):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
