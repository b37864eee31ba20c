"""Annotations are checked while tests run, shapes included; plain runs know nothing of it."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from jaxtyping import Float, TypeCheckError, jaxtyped

from analysis.statistics.grid import effect_grid
from analysis.statistics.resampling import mean_ci
from tasks.structure import ROOT
from tests import checked, unchecked


@jaxtyped(typechecker=checked)
def halves(scores: Float[np.ndarray, "E F"], count: int, share: float = 0.5) -> Float[np.ndarray, "E half"]:
    """Return the first ``count`` columns, times ``share``."""
    return scores[:, :count] * share if count else scores[0]


def test_a_wrong_shape_given_to_a_room_fails_the_test():
    with pytest.raises(TypeCheckError, match="E F C"):
        effect_grid(np.zeros((3, 2)), np.zeros((3, 2)))


def test_sizes_that_must_agree_are_compared_between_arguments():
    with pytest.raises(TypeCheckError, match="low"):
        effect_grid(np.zeros((3, 2, 4)), np.zeros((3, 2, 5)))


def test_a_wrong_type_of_number_fails_the_test():
    with pytest.raises(TypeCheckError, match="n_boot"):
        mean_ci(np.zeros((3, 2)), n_boot="many")


def test_a_wrong_shape_that_is_returned_fails_the_test():
    assert halves(np.ones((2, 4)), 2).shape == (2, 2)
    with pytest.raises(TypeCheckError, match="return value"):
        halves(np.ones((2, 4)), 0)


@pytest.mark.parametrize("count, share", [(np.int64(2), 1), (2, np.float32(0.5)), (np.uint8(1), np.int32(3))])
def test_numbers_of_numpy_and_whole_numbers_will_do(count, share):
    assert halves(np.ones((2, 4)), count, share).shape == (2, count)


def test_unchecked_gives_the_function_that_users_run():
    with pytest.raises(ValueError, match="give"):
        unchecked(effect_grid)(np.zeros((3, 2)), np.zeros((3, 2)))


def test_plain_runs_are_not_checked_and_do_without_the_checker():
    script = """
        import sys
        import analysis.engine.prefix_tree, analysis.tables.control
        from analysis.stats_fn import mean_ci

        print(mean_ci(range(3)).n, "beartype" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout.split() == ["3", "False"], done.stderr
