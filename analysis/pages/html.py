"""The templates of the pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, filters: dict[str, Callable[..., object]] | None = None, **values: Any) -> bytes:
    """Return a page; whatever ``values`` hold is text in it, never markup."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(filters or {})
    return environment.get_template(template).render(**values).encode()
