"""The documented use cases, on the model in the box, with few steps."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bld import Editor

EXAMPLE = Path(__file__).parents[2] / "examples" / "use_cases.py"
SCRIPT = runpy.run_path(str(EXAMPLE))


@pytest.fixture(scope="module")
def mini() -> Editor:
    return Editor.from_pretrained("mini", device="cpu")


@pytest.mark.parametrize("name", SCRIPT["CASES"])
def test_a_use_case_changes_its_mask_and_nothing_else(mini: Editor, name: str) -> None:
    edits: list[Any] = []
    edit = mini.edit

    class Noted(Editor):
        def edit(self, *given: Any, **options: Any) -> Any:
            edits.append(edit(*given, **options))
            return edits[-1]

    tiles = SCRIPT["CASES"][name](Noted(mini.model), candidates=2, seed=0, steps=3)
    assert SCRIPT["contact_sheet"](tiles).width > 0
    assert edits
    for result in edits:
        before, outside = result.photograph.pixels, result.mask == 0
        assert outside.any()
        for candidate in result.candidates:
            after = candidate.photograph.pixels
            np.testing.assert_array_equal(after[outside], before[outside])
            alone = result.round_trip.pixels[~outside].astype(int)  # the autoencoder, without an edit
            assert np.abs(after[~outside].astype(int) - alone).mean() > 4


def test_a_scribble_is_kept_the_better_the_lower_the_strength(mini: Editor) -> None:
    """The first of the sweep is nearer to the scribble than the last, within the mask."""
    tiles = dict(SCRIPT["scribble"](mini, candidates=1, seed=0, steps=10))
    scribble = tiles["scribble"].astype(float)
    apart = [np.abs(tiles[f"strength {s}"] - scribble).mean() for s in (0.4, 1.0)]
    assert apart[0] < apart[1]
