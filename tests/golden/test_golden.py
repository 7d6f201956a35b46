"""What the program gave when somebody last looked. README.md tells how each file was made.

The first failure to look at is the one of the earliest stage: levels, z_init, z, picture.
"""

import numpy as np
import pytest
from PIL import Image

from tests.golden import make
from tests.golden.make import Array, Arrays


@pytest.fixture(scope="module")
def made() -> Arrays:
    """What the bundled model gives now."""
    return make.mini()


@pytest.fixture(scope="module")
def golden() -> Arrays:
    """What it gave."""
    return make.read("mini")


def psnr(found: Array, expected: Array, peak: float) -> float:
    """In dB."""
    error = float(np.square(found.astype(np.float64) - expected).mean())
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def assert_near(found: Array, expected: Array, *, atol: float, decibels: float) -> None:
    """Nowhere far, and close as a whole; both numbers are printed, for `pytest -rP` and for failures."""
    peak = float(np.ptp(expected))
    largest = float(np.abs(found.astype(np.float64) - expected).max())
    closeness = psnr(found, expected, peak)
    print(f"largest difference {largest:.2g} of {peak:.3g}, PSNR {closeness:.1f} dB")
    assert largest <= atol
    assert closeness >= decibels


def test_every_file_belongs_to_a_set() -> None:
    files = {path.name for path in make.HERE.iterdir() if path.suffix in (".npz", ".png")}
    assert files == {f"{name}.npz" for name in make.SETS} | {make.EDIT_PNG.name}
    assert sum((make.HERE / file).stat().st_size for file in files) < 200_000


def test_geometry() -> None:
    found, expected = make.geometry(), make.read("geometry")
    assert found.keys() == expected.keys() - {"made_with"}
    for name, array in found.items():
        assert array.dtype == expected[name].dtype, name
        # Feathers are products of a few float32 numbers; masks are 0 or 1, and exact.
        atol = 1e-6 if name.startswith("feather") else 0
        np.testing.assert_allclose(array, expected[name], atol=atol, rtol=0, err_msg=name)


@pytest.mark.parametrize(("name", "levels"), [("uint8", 1), ("uint16", 2)])
def test_stitch(name: str, levels: int) -> None:
    found, expected = make.stitch()[name], make.read("stitch")[name]
    assert found.dtype == expected.dtype
    # Inside, resizing in float32 differs in the last bits from one processor to the next, and a
    # value near one half is then rounded the other way.
    assert np.abs(found.astype(int) - expected).max() <= levels
    outside = make.scene(name).mask == 0
    np.testing.assert_array_equal(found[outside], expected[outside])


def test_the_goldens_are_of_this_model(made: Arrays, golden: Arrays) -> None:
    """After a new bundled model: look at its edits, then `python -m tests.golden.make mini`."""
    assert str(made["revision"]) == str(golden["revision"])


def test_levels_of_50_steps(made: Arrays, golden: Arrays) -> None:
    # alpha_bar is a product of up to 1000 float32 numbers.
    np.testing.assert_allclose(made["levels"], golden["levels"], atol=1e-6, rtol=0)
    assert tuple(golden["levels"][0]) == (0, 1)


# Convolutions and matrix products add up in an order that depends on the processor and on the number
# of threads. README.md has what that made of each, and how it was measured; allowed is some forty
# times as much, which is still a tenth of what a guidance scale of 5.05 in place of 5 does to z.


def test_encoded_latents(made: Arrays, golden: Arrays) -> None:
    assert_near(made["z_init"], golden["z_init"], atol=1e-4, decibels=100)


def test_edited_latents(made: Arrays, golden: Arrays) -> None:
    assert_near(made["z"], golden["z"], atol=1e-3, decibels=90)
    outside = make.latent_mask(make.edited(), made["z"].shape[1:]) == 0
    np.testing.assert_array_equal(made["z"][:, outside], made["z_init"][:, outside])


def test_edited_picture(made: Arrays) -> None:
    with Image.open(make.EDIT_PNG) as file:
        expected = np.asarray(file)
    # In levels of 255: one for rounding, one for the latents.
    assert_near(made["picture"], expected, atol=2, decibels=70)
    outside = make.edited() == 0
    np.testing.assert_array_equal(expected[outside], make.photograph()[outside])
    assert np.abs(expected[~outside].astype(int) - make.photograph()[~outside]).mean() > 10
