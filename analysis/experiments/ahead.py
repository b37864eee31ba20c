"""Make what the next unit of work needs while the present one is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from analysis.results.store import UnitKey

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """Makes things for units in one thread of its own, in the order in which they are asked for.

    Building and tokenizing prompts takes the processor; on a GPU it costs nothing where it is done meanwhile.
    """

    def __init__(self, make: Callable[[UnitKey], Made]) -> None:
        """Remember how a thing is made; ``make`` is only ever called in one thread."""
        self.make = make
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self.begun: dict[UnitKey, Future[Made]] = {}

    def keep(self, *keys: UnitKey | None) -> None:
        """Make what these units need; let go of what was made for others, such as those done elsewhere."""
        for other in [other for other in self.begun if other not in keys]:
            self.begun.pop(other).cancel()
        for key in keys:
            if key is not None:
                self._begin(key)

    def take(self, key: UnitKey) -> Made:
        """Return what ``key`` needs, or raise what making it raised."""
        self._begin(key)
        return self.begun.pop(key).result()

    def _begin(self, key: UnitKey) -> None:
        if key not in self.begun:
            self.begun[key] = self.pool.submit(self.make, key)
