"""Gradient-domain pasting beside a direct solution of the same equations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bld.poisson import clone, membrane


@given(height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_inside_each_value_is_the_mean_of_its_neighbours(
    height: int, width: int, seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    values, inside = rng.random((height, width, 2)) * 255, rng.random((height, width)) < share
    inside[rng.integers(height), rng.integers(width)] = False
    if not inside.any():
        return
    surface = values.copy()
    surface[inside] = membrane(values, inside)
    for y, x in np.argwhere(inside):
        beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        there = [surface[j, i] for j, i in beside if 0 <= j < height and 0 <= i < width]
        # 1e-6 of values up to 255, over the few dozen unknowns.
        np.testing.assert_allclose(surface[y, x], np.mean(there, axis=0), atol=0.01)


@pytest.mark.parametrize("size", [30, 300])
def test_a_large_paste_is_solved_as_well_as_a_small_one(size: int) -> None:
    rng = np.random.default_rng(0)
    photograph = rng.random((size, size, 3)) * 255
    inside = np.zeros((size, size), bool)
    inside[size // 5 :, size // 4 : -size // 4] = True
    slope = np.linspace(0, 60, size)[:, None, None]  # linear, so harmonic, but not free at the border
    level = np.full((1, 1, 3), 30.0)
    pasted = clone(photograph, photograph + level, inside)
    np.testing.assert_allclose(pasted, photograph, atol=0.01)
    assert not np.allclose(clone(photograph, photograph + slope**2, inside), photograph, atol=0.01)
