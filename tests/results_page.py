"""The tables of docs/results.md, from the docstrings of the schema; ``python -m tests.results_page`` writes.

tests/test_results_page.py compares, so that the page cannot say anything else than the schema.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from jaxtyping import AbstractArray

from analysis.results import schema
from analysis.results.fields import hints_of, optional
from analysis.results.schema import KINDS, Kind, Meta, Record

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"
START, END = "<!-- tables: python -m tests.results_page -->\n", "<!-- end of tables -->\n"
TYPES = {
    "str": "text", "int": "integer", "float": "number", "bool": "true or false", "Int": "integers",
    "Float": "numbers", "Bool": "true or false",
}  # fmt: skip


def docs_of(tree: ast.Module) -> dict[str, dict[str, str]]:
    """Return class -> field -> docstring; the class's own stands under its own name."""
    found: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            texts = {node.name: ast.get_docstring(node) or ""}
            for one, following in zip(node.body, node.body[1:], strict=False):
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                        texts[one.target.id] = str(following.value.value)
            found[node.name] = texts
    return found


DOCS = docs_of(ast.parse(Path(schema.__file__).read_text(encoding="utf-8")))


def doc(kind: type, name: str) -> str:
    """Return the docstring of a field in one line, also of one that a class above it declares."""
    for one in kind.__mro__:
        if name in DOCS.get(one.__name__, {}):
            return re.sub(r"\s+", " ", DOCS[one.__name__][name]).replace("``", "`")
    raise KeyError(f"{kind.__name__}.{name} has no docstring")


def described(hint: Any) -> tuple[str, str]:
    """Return what a field holds, and its shape, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if optional(hint):
        what, shape = described(next(part for part in parts if part is not type(None)))
        return f"{what}; may be lacking", shape
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return f"array of {TYPES[hint.__name__.partition('[')[0]]}", " x ".join(hint.dim_str.split())
    if origin is Annotated:
        return described(parts[0])[0], " x ".join(parts[1].split())
    if origin is dict and parts[1] is not Any:
        what, shape = described(parts[1])
        return f"name to {what}", shape
    if origin is dict:
        return "mapping", ""
    if origin is list:
        return f"list of {described(parts[0])[0]}", ""
    if origin is tuple:
        return f"{len(parts)} of {described(parts[0])[0]}", ""
    return TYPES.get(hint.__name__, f"mapping, see {hint.__name__}"), ""


def table(kind: type) -> Iterator[str]:
    """Yield the lines of a table of the fields of a dataclass."""
    yield "| field | holds | shape | meaning |"
    yield "|---|---|---|---|"
    for name, hint in hints_of(kind).items():
        if name == "meta" and kind is not Meta:
            continue
        what, shape = described(hint)
        yield f"| `{name}` | {what} | {shape} | {doc(kind, name)} |"


def file_name(kind: Kind) -> str:
    """Return the pattern of a kind's names as people write it: ``[...]`` may be left out."""
    name = re.sub(r"\(\?:0\|[^()]*\)", "#", kind.pattern)
    name = re.sub(r"\(\?P<(\w+)>[^()]*\)", r"<\1>", name)
    name = re.sub(r"\(([^()]*)\)\?", r"[\1]", name)
    return name.replace("\\", "")


def nested(kind: type[Record]) -> list[type]:
    """Return the records that the lists of one hold."""
    parts = (get_args(hint) for hint in hints_of(kind).values() if get_origin(hint) is list)
    return [part for (part,) in parts if part.__name__ in DOCS]


def pages() -> Iterator[str]:
    """Yield the lines of all tables."""
    letters = str(schema.__doc__).partition("Shape letters")[2]
    yield from ("### Shape letters", "", "Sizes in brackets are told by the settings in the meta data.", "")
    for line in re.findall(r"(?:^| {3,})(\S.*?)(?= {3,}|$)", letters.partition(":\n")[2], re.M):
        letter, _, text = line.partition(" ")
        yield f"- **{letter}** {text}"
    yield from ("", "### `meta`, in every file", "", doc(Meta, "Meta"), "", *table(Meta), "")
    shown: dict[type[Record], list[Kind]] = {}
    for kind in KINDS:
        shown.setdefault(kind.record, []).append(kind)
    for record, kinds in shown.items():
        yield from (f"### {' / '.join(kind.name for kind in kinds)}", "")
        yield from (f"- `{file_name(kind)}`, made by `{kind.script}`" for kind in kinds)
        yield from ("", doc(record, record.__name__), "", *table(record), "")
        for part in nested(record):
            yield from (f"Each of them: {doc(part, part.__name__)}", "", *table(part), "")


def whole(page: str) -> str:
    """Return the page with its tables made anew."""
    before, _, rest = page.partition(START)
    return before + START + "\n" + "\n".join(pages()) + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(whole(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
