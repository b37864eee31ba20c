"""Every setting of a study, the model aliases, and the layers that figures look at.

A setting is taken from, later wins: the defaults below, configs/analysis.yml, configs/nf_exp1.yml, the
model's own file (MODEL_CONFIGS) or the file given with ``--config``, then flags. Unknown or ill-typed keys
are errors that name the file, the key and the choices.
"""

from __future__ import annotations

import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from analysis.axes.names import PAPER_AXES, RANDOM, SHUFFLED, numbered
from analysis.base.errors import UserError as UserError

CONFIG_DIR = Path(__file__).resolve().parent

MODEL_ALIASES: dict[str, str] = {
    "llama3_8b": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3.1_8b": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3_1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3.2_1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3_3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama3.2_3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama3_70b": "meta-llama/Llama-3.1-70B-Instruct",
    "llama3.1_70b": "meta-llama/Llama-3.1-70B-Instruct",
    "qwen2.5_1.5b": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5_3b": "Qwen/Qwen2.5-3B-Instruct",
    "qwen2.5_7b": "Qwen/Qwen2.5-7B-Instruct",
    "qwen2.5_72b": "Qwen/Qwen2.5-72B-Instruct",
    "smollm2": "smollm2",
}

SELECTED_LAYERS: dict[str, tuple[int, ...]] = {
    # depths 0, 25, 50, 75 and 100 %: round(depth * (n_layers - 1)), halves rounded up
    "meta-llama/Llama-3.1-8B-Instruct": (0, 8, 16, 23, 31),
    "meta-llama/Llama-3.2-1B-Instruct": (0, 4, 8, 11, 15),
    "meta-llama/Llama-3.2-3B-Instruct": (0, 7, 14, 20, 27),
    "meta-llama/Llama-3.1-70B-Instruct": (0, 20, 40, 59, 79),
    "Qwen/Qwen2.5-1.5B-Instruct": (0, 7, 14, 20, 27),
    "Qwen/Qwen2.5-3B-Instruct": (0, 9, 18, 26, 35),
    "Qwen/Qwen2.5-7B-Instruct": (0, 7, 14, 20, 27),
    "Qwen/Qwen2.5-72B-Instruct": (0, 20, 40, 59, 79),
    "smollm2": (0, 7, 15, 22, 29),
}

ACTIVE, INACTIVE = MODES = ("active", "inactive")
"""How a sentence comes about in control: the model writes it, or is given it to read."""
TRUE, SHAM, PUSHED = ARMS = ("true", "sham", "pushed")
"""Arms of control:

    true    the shown scores are those of the sentences
    sham    the same scores, permuted among the examples: all that is left without true feedback
    pushed  the prompt of ``true``, and the axis is added by steering, up or down as wanted, while the
            sentence is written or read: what the instrument shows when activations do move
"""


def arm_shots(arm: str, shots: Sequence[int]) -> list[int]:
    """Return the numbers of examples at which an arm is run, of those of the study.

    Without examples nothing can be permuted, and two points are enough to see what a push does.
    """
    if arm == SHAM:
        return [n for n in shots if n > 0]
    return sorted({shots[0], shots[-1]}) if arm == PUSHED else list(shots)


LEVELS = (2, 4, 6, 8, 10)
"""How many labels can be shown: low and high, or quantile levels."""
THRESHOLDS = ("median", "zero")
"""Where a score becomes label 1: the median of held-out scores, or the mean of the fitting sentences."""

FORMATS = ("png", "pdf", "svg")
"""File formats of figures."""

MODEL_CONFIGS: dict[str, str] = {"smollm2": "cpu.yml"}
"""Models whose default sizes differ from the paper's: the embedded model is sized for two CPU cores."""


@dataclass(frozen=True)
class Settings:
    """All sizes and choices of a study; every field can be set in YAML."""

    seed: int = 42
    """Seeds the split, the axes drawn at random, the experiments and the replies."""
    n_axis: int = 600
    """Sentences that the axes are fitted on, balanced by class."""
    n_trial: int = 600
    """Sentences that experiments draw from, disjoint from the above."""
    lr_c: float | str = "auto"
    """Inverse L2 strength of the logistic regression, on coordinates scaled to variance 1; ``auto``: by
    cross-validation over groups of the fitting sentences, at each layer."""
    threshold: str = "median"
    """Where a score becomes label 1: the ``median`` of held-out scores, or ``zero``."""
    max_pc: int = 512
    """Principal components kept per layer, where the number of sentences allows."""
    n_random: int = 1
    """Axes ``random0``, ``random1``, ...: random directions."""
    n_shuffled: int = 1
    """Axes ``lr_shuffled0``, ...: logistic regressions on permuted labels."""
    axes: tuple[str, ...] = PAPER_AXES
    """Axes that neurofeedback.py trains the model on (the other scripts take --pc / --clf)."""
    report_controls: tuple[str, ...] = (numbered(SHUFFLED, 0), numbered(RANDOM, 0))
    """Report: axes that neurofeedback.py adds to ``axes``: what the report of no real axis is like."""
    layer: str = "middle"
    """Layers of the feedback: ``all``, ``middle``, ``selected`` or a list such as ``7,15``."""
    n_experiments: int = 100
    """Experiments of a full run (``--*_exp_end -1``)."""
    smoke_experiments: int = 2
    """Experiments when ``--*_exp_end`` is not given."""
    shots: tuple[int, ...] = (0, 2, 4, 8, 16, 32, 64, 128, 256)
    """Control: numbers of examples in context, nested within an experiment."""
    arms: tuple[str, ...] = ARMS
    """Control: true scores, the same scores permuted (``sham``), the axis added by steering (``pushed``)."""
    push: float = 1.0
    """Control: strength of the pushed arm, in standard deviations of the scores of new sentences."""
    equivalence: float = 0.2
    """X of the verdict "no effect larger than X", in standard deviations of the scores of new sentences."""
    modes: tuple[str, ...] = MODES
    """Control: the model writes (``active``) or reads a given sentence (``inactive``)."""
    max_new_tokens: int = 50
    """Control: longest reply, in tokens."""
    temperature: float = 0.7
    """Control: sampling temperature, 0 is greedy; the full distribution is sampled (top_p 1, top_k off)."""
    models: tuple[str, ...] = ()
    """Models that neurofeedback.py studies one after the other; none: the one of ``--model``."""
    datasets: tuple[str, ...] = ()
    """Datasets that neurofeedback.py studies with each model; none: the one of ``--dataset``."""
    levels: tuple[int, ...] = (2,)
    """Labels shown: 2 are low and high; 4, 6, 8 or 10 are quantile levels. Each makes a grid of its own."""
    report_examples: int = 600
    """Report: examples in the one sequence that is read."""

    @property
    def report_axes(self) -> tuple[str, ...]:
        """The axes of the report experiments of neurofeedback.py."""
        return tuple(dict.fromkeys([*self.axes, *self.report_controls]))

    def __post_init__(self) -> None:
        _check(self.threshold in THRESHOLDS, "threshold", self.threshold, " or ".join(THRESHOLDS))
        _check(_some_of(self.modes, MODES), "modes", self.modes, f"{', '.join(MODES)}, or both")
        for name in ("n_axis", "n_trial", "n_experiments", "smoke_experiments", "max_new_tokens"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        _check(_some_of(self.arms, ARMS), "arms", self.arms, f"different ones of {', '.join(ARMS)}")
        _check("true" in self.arms, "arms", self.arms, "true, which the others are compared with, and others")
        _check(0 < self.equivalence < 100, "equivalence", self.equivalence, "a number > 0 and < 100")
        _check(0 < self.push < 100, "push", self.push, "a number > 0 and < 100")
        for name in ("n_random", "n_shuffled", "temperature", "max_pc", "seed"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "a number >= 0")
        strength = self.lr_c if isinstance(self.lr_c, float) else float(self.lr_c == "auto")
        _check(strength > 0, "lr_c", self.lr_c, "a number > 0, or auto")
        _check(self.report_examples >= 2, "report_examples", self.report_examples, "a number >= 2")
        allowed = f"different numbers out of {', '.join(map(str, LEVELS))}"
        _check(_some_of(self.levels, LEVELS), "levels", self.levels, allowed)
        rising = all(a < b for a, b in zip(self.shots, self.shots[1:], strict=False))
        _check(
            bool(self.shots) and min(self.shots) >= 0 and rising,
            "shots",
            self.shots,
            "rising numbers >= 0",
        )


class SettingError(UserError):
    """A setting with an unknown name, a wrong type or a value out of range."""


_SHORT = reprlib.Repr()  # YAML can nest more than a line should show
_SHORT.maxstring = _SHORT.maxother = 80


def _check(ok: bool, name: str, got: Any, allowed: str) -> None:
    if not ok:
        raise SettingError(f"setting {name} = {_SHORT.repr(got)}: must be {allowed} (configs/settings.py)")


def _some_of(chosen: tuple[Any, ...], known: tuple[Any, ...]) -> bool:
    """Return whether ``chosen`` are one or more of ``known``, each once."""
    return bool(chosen) and set(chosen) <= set(known) and len(set(chosen)) == len(chosen)


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Return ``value`` as the field's type, or raise SettingError; a list becomes a tuple."""
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise SettingError(f"{name} = {_SHORT.repr(value)}: must be a list of {item.__name__}")
        return tuple(coerce(name, part, item) for part in value)
    if typing.get_origin(kind) is types.UnionType:
        kinds = typing.get_args(kind)
        kind = next((one for one in kinds if isinstance(value, one)), kinds[0])
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SettingError(
            f"{name} = {_SHORT.repr(value)}: must be {kind.__name__}, not {type(value).__name__}"
        )
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping; errors name the file."""
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.name for p in CONFIG_DIR.glob("*.yml")))
        raise SettingError(
            f"no config file {_shown(path)}: give a path, or one of configs/: {known}"
        ) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingError(f"{_shown(path)} is not a readable YAML file: {reason}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingError(f"{path} holds a {type(loaded).__name__}: it must hold `key: value` lines")
    return loaded


def apply(base: Settings, changes: Mapping[str, Any], source: str) -> Settings:
    """Return ``base`` with ``changes`` checked against the fields; ``source`` is named in errors."""
    kinds = typing.get_type_hints(Settings)
    for key in changes:
        if key not in kinds:
            raise SettingError(
                f"{source}: unknown setting {_SHORT.repr(key)}: choose from {', '.join(sorted(kinds))}"
            )
    try:
        return replace(base, **{k: coerce(k, v, kinds[k]) for k, v in changes.items()})
    except SettingError as error:
        raise SettingError(f"{source}: {error}") from None


def load_settings(
    model: str, config: str | Path | None = None, flags: Mapping[str, Any] | None = None
) -> Settings:
    """Return the settings for ``model`` (alias or hub name), see the module docstring for the order.

    Raises:
        SettingError: a file, key or value is wrong; the message names it.
    """
    files = [CONFIG_DIR / "analysis.yml", CONFIG_DIR / "nf_exp1.yml"]
    own = MODEL_CONFIGS.get(MODEL_ALIASES.get(model, model))
    if config is not None:
        named = CONFIG_DIR / str(config)
        files.append(named if not _exists(Path(config)) and _exists(named) else Path(config))
    elif own is not None:
        files.append(CONFIG_DIR / own)
    settings = Settings()
    for path in files:
        settings = apply(settings, read_yaml(path), str(path))
    return apply(settings, dict(flags or {}), "command line")


def _shown(path: Path) -> str:
    return str(path) if str(path).isprintable() else repr(str(path))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def setting_names() -> frozenset[str]:
    """Names of all settings."""
    return frozenset(field.name for field in fields(Settings))


def as_plain(settings: Settings) -> Mapping[str, Any]:
    """Return the settings as builtins, for meta data in results."""
    return types.MappingProxyType(
        {
            f.name: list(v) if isinstance(v := getattr(settings, f.name), tuple) else v
            for f in fields(settings)
        }
    )
