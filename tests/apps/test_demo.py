"""What a newcomer sees first: the demo, run as it is, with the model in the box."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_demo_changes_the_photograph_inside_the_mask_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py", str(tmp_path / "demo")])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(EXAMPLES / "demo.py"), run_name="__main__")
    assert done.value.code == 0
    result = tmp_path / "demo" / "result.png"
    assert str(result) in capsys.readouterr().out
    inside = pixels(EXAMPLES / "masks" / "coffee.png") > 0
    before, after = pixels(tmp_path / "demo" / "photograph.png"), pixels(result)
    assert (after[~inside] == before[~inside]).all()
    # Two seeds give two stars; the autoencoder alone would give the same picture twice.
    first, second = (
        pixels(tmp_path / "demo" / "candidates" / f"0{i}.png")[inside].astype(int) for i in (0, 1)
    )
    assert np.abs(first - second).mean() > 2


def test_masks_are_what_their_script_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(EXAMPLES / "draw_masks.py"))
    monkeypatch.setitem(script["main"].__globals__, "MASKS", tmp_path)
    script["main"]()
    for mask in sorted(tmp_path.iterdir()):
        assert (pixels(mask) == pixels(EXAMPLES / "masks" / mask.name)).all()
