"""Command-line plumbing shared by the scripts: common flags, logging, errors as one line."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from analysis.axes.names import LR, examples, pc
from analysis.base.errors import UserError
from analysis.base.processes import own_device
from analysis.results.store import Store
from configs.settings import LEVELS, MODEL_ALIASES, Settings, load_settings, setting_names


def base_parser(doc: str | None, *, model_flag: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the flags of every script; ``doc`` is the script's docstring."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    if model_flag:
        aliases = ", ".join(MODEL_ALIASES)
        parser.add_argument(
            "--model", default="smollm2",
            help=f"alias ({aliases}), hub name, folder, or .gguf file (default: smollm2)",
        )  # fmt: skip
    parser.add_argument(
        "--dataset", default="commonsense", help="dataset key, see data/README.md (default: commonsense)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="results folder (default: %(default)s)"
    )
    parser.add_argument(
        "--log_level", choices=("debug", "info", "warning", "error"), default="info",
        help="how much to log (default: %(default)s)",
    )  # fmt: skip
    return parser


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of scripts that run a model."""
    parser.add_argument(
        "--config", help="YAML file with settings (default: the paper's sizes; smollm2: configs/cpu.yml)"
    )
    parser.add_argument("--seed", type=int, default=argparse.SUPPRESS, help="default: 42")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, or map for several GPUs (default: auto)"
    )
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
        help="auto is bfloat16 on a GPU and float32 on a CPU (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--load_in_4bit", action="store_true",
        help="4-bit weights for a model that is too big for the GPU; needs the package bitsandbytes",
    )  # fmt: skip
    parser.add_argument("--attn_implementation", help="passed to transformers (default: its choice)")
    parser.add_argument(
        "--token_budget", type=positive, help="most tokens forwarded at once (default: by device)"
    )
    parser.add_argument("--overwrite", action="store_true", help="redo what exists, also with other settings")
    parser.add_argument(
        "--dry_run", action="store_true",
        help="only print the units of work, the tokens to forward and the memory expected",
    )  # fmt: skip


def add_shard_flag(parser: argparse.ArgumentParser) -> None:
    """Add --shard."""
    parser.add_argument(
        "--shard", metavar="i/n",
        help="do the i-th of n parts of the units, such as 2/4 in the second of four jobs (default: all)",
    )  # fmt: skip


def loading_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of add_run_flags that utils.load_model takes; each process has a device of its own."""
    names = ("dtype", "attn_implementation", "load_in_4bit")
    return {"device": own_device(args.device), **{name: getattr(args, name) for name in names}}


def run_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of add_run_flags that analysis.experiments.runs takes as keywords."""
    return {**loading_options(args), "token_budget": args.token_budget, "overwrite": args.overwrite}


def add_experiment_flags(parser: argparse.ArgumentParser, kind: str) -> None:
    """Add --<kind>_exp_start and --<kind>_exp_end."""
    parser.add_argument(
        f"--{kind}_exp_start", type=natural, default=0, help="first experiment (default: %(default)s)"
    )
    parser.add_argument(
        f"--{kind}_exp_end", type=int,
        help="one past the last experiment; -1: all n_experiments of the config; left out: a quick smoke run",
    )  # fmt: skip


def add_axis_flags(parser: argparse.ArgumentParser) -> None:
    """Add --pc, --clf and --layer."""
    parser.add_argument(
        "--pc", type=positive, nargs="+", default=[], help="principal components, such as --pc 1 2 4"
    )
    parser.add_argument("--clf", nargs="+", default=[], help=f"axes by name: {', '.join(examples())}")
    parser.add_argument(
        "--layer", default=argparse.SUPPRESS,
        help="all, middle, selected, or numbers such as 7,15; layer 0 is the output of the first block",
    )  # fmt: skip
    add_levels_flag(parser)


def add_levels_flag(parser: argparse.ArgumentParser) -> None:
    """Add --levels."""
    parser.add_argument(
        "--levels", type=int, nargs="+", default=argparse.SUPPRESS,
        help=f"labels shown, of {', '.join(map(str, LEVELS))}: 2 are low and high, more are quantile levels; "
        "several: a grid each (default: 2)",
    )  # fmt: skip


def chosen_axes(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the axes asked for with --clf and --pc; ``lr`` when neither is given."""
    names = (*args.clf, *map(pc, args.pc))
    return tuple(dict.fromkeys(names)) or (LR,)


def settings_from(args: argparse.Namespace, model: str) -> Settings:
    """Return the settings for ``model``: YAML files, then the flags that name a setting."""
    flags: dict[str, Any] = {k: v for k, v in vars(args).items() if k in setting_names()}
    return load_settings(model, getattr(args, "config", None), flags)


def store_from(args: argparse.Namespace, model: str) -> Store:
    """Return where results go, with the flags that commands in error messages must repeat."""
    given = {name: getattr(args, name, None) for name in ("config", "seed", "dtype")}
    words = [(f"--{name}", str(value)) for name, value in given.items() if value not in (None, "auto")]
    flags = "".join(f" {shlex.join(pair)}" for pair in words)
    flags += " --load_in_4bit" if getattr(args, "load_in_4bit", False) else ""
    return Store(args.results, model, args.dataset, flags)


def experiment_range(start: int, end: int | None, settings: Settings) -> range:
    """Return the experiments to run: ``end`` -1 is all of the config, None a quick smoke run."""
    if end is None:
        end = start + settings.smoke_experiments
    elif end == -1:
        end = max(settings.n_experiments, start)
    if start < 0 or end < start:
        raise UserError(f"experiments {start}..{end}: start must be >= 0 and end >= start, or -1 for all")
    return range(start, end)


def positive(text: str) -> int:
    """Argparse type: an integer >= 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return value


def natural(text: str) -> int:
    """Argparse type: an integer >= 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: must be 0 or more")
    return value
