"""Which room uses which: the arrows of the real imports, those inside functions included.

Reads   every .py file of the repository but tests/
Writes  nothing; exit code 1 if an import points up, if modules form a circle, or if a room is unknown
Try     python -m tasks.structure
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LEVELS: tuple[tuple[str, ...], ...] = (
    ("base", "names"),
    ("configs",),
    ("utils",),
    ("data", "models", "prompts"),
    ("engine", "results", "statistics"),
    ("axes",),
    ("experiments", "tables"),
    ("figures", "cli"),
    ("pages",),
    ("studies.causal", "studies.closed_loop", "studies.datasets", "studies.evasion"),
    ("scripts",),
    ("tasks",),
)
"""The rooms from the ground up; a room may use those of the levels below it, not those beside it."""
FIXED = {
    "axes.names": "names",
    "process_hidden": "models",
    "process_prompts": "prompts",
    "classifiers": "axes",
    "stats_fn": "statistics",
}
"""Modules that stand beside the rooms of analysis/ -> the room that each is the face of; and one that stands
in a room, but is a room of its own: what axes are called, which files and settings know too."""


@dataclass(frozen=True)
class Import:
    """One module uses another."""

    user: str
    used: str
    line: int
    late: bool
    """Inside a function."""

    def __str__(self) -> str:
        return f"{self.user} line {self.line} uses {self.used}{' (inside a function)' if self.late else ''}"


def room(module: str) -> str:
    """Return the room of a module, such as ``engine`` for ``analysis.engine.trie``."""
    top, *rest = module.split(".")
    if top != "analysis":
        return top if top in ("configs", "data", "tasks", "utils") else "scripts"
    if not rest:
        return "base"
    if rest[0] == "studies":
        return ".".join(rest[:2])
    return FIXED.get(".".join(rest), rest[0])


def modules(root: Path) -> dict[str, Path]:
    """Return dotted name -> file of every module below ``root`` but tests and hidden folders."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] != "tests" and not any(part.startswith(".") for part in parts):
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(module: str, path: Path, known: Mapping[str, Path]) -> list[Import]:
    """Return the imports of ``module`` from other modules of ours, wherever they stand in the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = _named(node, module, path)
            for used in dict.fromkeys(n if n in known else n.rpartition(".")[0] for n in names):
                if used in known and used != module:
                    found.append(Import(module, used, node.lineno, id(node) in inside))
    return found


def _named(node: ast.Import | ast.ImportFrom, module: str, path: Path) -> list[str]:
    """Return the dotted names that a statement may mean: of modules, or of what is in them."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    start = node.module or ""
    if node.level:
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        above = package[: len(package) - node.level + 1]
        start = ".".join([*above, *filter(None, [node.module])])
    return [f"{start}.{alias.name}" for alias in node.names]


def arrows(found: Iterable[Import]) -> dict[str, dict[str, list[Import]]]:
    """Return room -> room it uses -> the imports that do so."""
    grouped: dict[str, dict[str, list[Import]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        if room(one.user) != room(one.used):
            grouped[room(one.user)][room(one.used)].append(one)
    return {user: dict(used) for user, used in grouped.items()}


def upward(found: Iterable[Import]) -> list[str]:
    """Return what is wrong between rooms: arrows that do not lead down, and rooms without a level."""
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    wrong = []
    for one in found:
        ends = room(one.user), room(one.used)
        unknown = [name for name in ends if name not in level]
        if unknown:
            wrong.append(f"{one}: {unknown[0]} has no level in tasks/structure.py")
        elif ends[0] != ends[1] and level[ends[1]] >= level[ends[0]]:
            wrong.append(f"{one}: {ends[0]} must not use {ends[1]}")
    return wrong


def circle(found: Iterable[Import]) -> list[str]:
    """Return modules that use each other in a circle, the first one again at the end; empty if none do."""
    uses: dict[str, list[str]] = defaultdict(list)
    for one in found:
        uses[one.user].append(one.used)
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for used in uses.get(module, ()):
            if met := walk(used, [*trail, module]):
                return met
        done.add(module)
        return []

    return next((met for module in list(uses) if (met := walk(module, []))), [])


def survey(root: Path = ROOT) -> tuple[list[Import], list[str]]:
    """Return all imports between our modules, and what is wrong with them in words."""
    known = modules(root)
    found = [one for module, path in known.items() for one in imports_of(module, path, known)]
    wrong = upward(found)
    if met := circle(found):
        wrong.append(f"a circle: {' -> '.join(met)}")
    return found, wrong


def describe(found: Sequence[Import]) -> str:
    """Return every room with the rooms it uses and by how many imports, from the ground up."""
    by_room = arrows(found)
    lines = []
    for number, names in enumerate(LEVELS):
        for name in names:
            used = by_room.get(name, {})
            shown = ", ".join(f"{other} {len(found)}" for other, found in sorted(used.items()))
            lines.append(f"{number:2d} {name:20s} {shown or '-'}")
    late = sum(one.late for one in found)
    count = sum(map(len, by_room.values()))
    lines.append(f"{count} arrows between rooms, {len(found)} imports, {late} of them inside functions")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rooms and their arrows; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, nargs="?", default=ROOT, help="of the repository (default: this)")
    found, wrong = survey(parser.parse_args(argv).root)
    print(describe(found))
    print("\n".join(wrong) or "no circle, no arrow up")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
