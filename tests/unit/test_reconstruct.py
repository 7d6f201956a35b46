"""Background reconstruction: what each way keeps, and what it puts in."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ImageCms

from bld.fidelity import fidelity
from bld.images import Photograph, to_tensor
from bld.masks import Box, FloatArray, feather_inside
from bld.models.unet import UNetModel
from bld.options import FIELDS, TUNED, EditOptions, Reconstruction
from bld.reconstruct import WAYS, Scene, reconstruct
from tests.tiny import painter

DEPTHS = [np.uint8, np.uint16]
WHOLE = Box(0, 0, 8, 8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """A photograph of 1 to 24 pixels a side, a crop of it, a mask anywhere and a decoded picture."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    box = Box(top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left)))
    dtype = draw(st.sampled_from(DEPTHS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = np.iinfo(dtype).max + 1
    return made(
        photograph=Photograph(
            rng.integers(0, levels, (height, width, 3)).astype(dtype),
            draw(st.sampled_from([None, rng.integers(0, levels, (height, width)).astype(dtype)])),
            draw(st.sampled_from([None, SRGB])),
        ),
        box=box,
        mask=draw(hnp.arrays(np.float32, (height, width), elements=st.sampled_from([0.0, 1.0]))),
        decoded=rng.random((draw(st.integers(1, 16)), draw(st.integers(1, 16)), 3), np.float32),
        feather=draw(st.integers(0, 8)),
    )


def made(photograph: Photograph, box: Box, mask: FloatArray, decoded: FloatArray, feather: int) -> Scene:
    """A scene whose latents are the decoded picture itself, and whose decoder has weights to tune."""
    z_0 = to_tensor(decoded)
    options = EditOptions(feather=feather, tune_steps=3)
    return Scene(photograph, box, mask, decoded, z_0, lambda: painter(1), options)


def changed(scene: Scene, **options: Any) -> Scene:
    """The same scene with other options."""
    return replace(scene, options=replace(scene.options, **options))


def scene(dtype: Any = np.uint8, *, box: Box = WHOLE, feather: int = 0) -> Scene:
    """A dark photograph of 8 x 8, a light decoded picture, and a mask over the right half."""
    mask = np.zeros((8, 8), np.float32)
    mask[:, 4:] = 1
    pixels = np.full((8, 8, 3), np.iinfo(dtype).max // 5, dtype)  # 0.2
    decoded = np.full((box.height, box.width, 3), 0.8, np.float32)
    return made(Photograph(pixels), box, mask, decoded, feather)


def test_the_ways_are_those_that_may_be_asked_for() -> None:
    assert FIELDS["reconstruct"].type == Reconstruction
    assert set(WAYS) == set(Reconstruction.__args__)


# --- every way ---


@pytest.mark.parametrize("way", WAYS)
@given(given_scene=scenes())
def test_every_way_leaves_what_lies_outside_the_crop(way: Reconstruction, given_scene: Scene) -> None:
    photograph, result = given_scene.photograph, reconstruct(way, given_scene)
    outside = np.ones(photograph.size, bool)
    outside[given_scene.box.slices] = False
    np.testing.assert_array_equal(result.pixels[outside], photograph.pixels[outside])


@pytest.mark.parametrize("way", WAYS)
@given(given_scene=scenes())
def test_every_way_keeps_size_depth_profile_and_alpha(way: Reconstruction, given_scene: Scene) -> None:
    photograph = given_scene.photograph
    before = photograph.pixels.copy()
    result = reconstruct(way, given_scene)
    assert result.size == photograph.size
    assert result.pixels.dtype == photograph.pixels.dtype
    assert result.icc_profile == photograph.icc_profile
    assert result.alpha is photograph.alpha
    np.testing.assert_array_equal(photograph.pixels, before)  # the photograph itself is not edited
    assert not np.shares_memory(result.pixels, photograph.pixels)


# --- stitch ---


@given(scenes())
def test_stitch_keeps_every_byte_outside_the_mask(given_scene: Scene) -> None:
    photograph, result = given_scene.photograph, reconstruct("stitch", given_scene)
    outside = given_scene.mask == 0
    assert result.pixels[outside].tobytes() == photograph.pixels[outside].tobytes()
    assert fidelity(photograph, result, given_scene.mask)[:3] == (0.0, None, 1.0)


@given(scenes())
def test_stitch_stays_between_the_photograph_and_the_generated_picture(given_scene: Scene) -> None:
    original = given_scene.photograph.pixels[given_scene.box.slices].astype(np.int64)
    generated = given_scene.generated(given_scene.decoded).astype(np.int64)
    pixels = reconstruct("stitch", given_scene).pixels[given_scene.box.slices]
    assert (pixels >= np.minimum(original, generated)).all()
    assert (pixels <= np.maximum(original, generated)).all()


@given(scenes())
def test_stitch_without_a_feather_pastes_by_the_mask(given_scene: Scene) -> None:
    hard = changed(given_scene, feather=0)
    inside = hard.mask[hard.box.slices] == 1
    pixels = reconstruct("stitch", hard).pixels[hard.box.slices]
    np.testing.assert_array_equal(pixels[inside], hard.generated(hard.decoded)[inside])


@pytest.mark.parametrize("dtype", DEPTHS)
def test_stitch_feathers_on_the_inside(dtype: Any) -> None:
    row = reconstruct("stitch", scene(dtype, feather=3)).pixels[4, :, 0] / np.iinfo(dtype).max
    assert (row[:4] == 0.2).all()  # outside: 51 of 255 and 13107 of 65535 are 0.2 exactly
    assert (np.diff(row[3:]) > 0).all()
    assert row[4] > 0.2 + 0.02  # the outermost pixel is edited, softly
    assert row[7] == pytest.approx(0.8, abs=0.5 / 255)  # as deep as the feather is wide


def test_stitch_feathers_the_mask_not_the_crop() -> None:
    """A mask that runs past the crop is whole at the crop's border."""
    cut = scene(box=Box(0, 0, 8, 6), feather=3)
    whole = scene(feather=3)
    np.testing.assert_array_equal(
        reconstruct("stitch", cut).pixels[:, :6], reconstruct("stitch", whole).pixels[:, :6]
    )


def test_stitch_rounds_to_the_nearest_level() -> None:
    """A feather of black and white: always rounding down would darken every soft edge."""
    feathered = replace(scene(feather=6), decoded=np.ones((8, 8, 3), np.float32))
    black = Photograph(np.zeros((8, 8, 3), np.uint8))
    pixels = reconstruct("stitch", replace(feathered, photograph=black)).pixels
    weight = feather_inside(feathered.mask, 6)[..., None].astype(np.float64)
    assert np.abs(pixels - 255 * weight).max() <= 0.5
    assert ((255 * weight) % 1 > 0.5).any()  # some of it had to go up


def test_sixteen_bits_are_generated_in_sixteen_bits() -> None:
    """0.8 of 65535 is 52428; by way of 8 bits it would be a multiple of 257."""
    deep = scene(np.uint16)
    ramp = np.linspace(0.8, 0.801, 64, dtype=np.float32).reshape(8, 8)
    finer = replace(deep, decoded=np.repeat(ramp[..., None], 3, axis=2))
    inside = reconstruct("stitch", finer).pixels[:, 4:, 0]
    np.testing.assert_array_equal(inside, np.rint(ramp[:, 4:].astype(np.float64) * 65535))
    assert len(np.unique(inside)) > 16


# --- none ---


@given(scenes())
def test_none_pastes_the_whole_crop(given_scene: Scene) -> None:
    result = reconstruct("none", given_scene)
    np.testing.assert_array_equal(
        result.pixels[given_scene.box.slices], given_scene.generated(given_scene.decoded)
    )


def test_the_generated_picture_comes_at_the_crops_size() -> None:
    """Two colours side by side at another size: nothing is mirrored, turned or shifted."""
    decoded = np.zeros((4, 8, 3), np.float32)
    decoded[:, 4:] = (1, 0.2, 0)
    wide = made(
        Photograph(np.zeros((20, 40, 3), np.uint8)), Box(2, 4, 16, 32), np.ones((20, 40), np.float32),
        decoded, 0,
    )  # fmt: skip
    pixels = reconstruct("none", wide).pixels
    # The curves of bicubic interpolation reach 2 of the 4 px cells beyond the edge at column 20.
    assert (pixels[2:18, 4:12] == 0).all()
    assert (pixels[2:18, 28:36] == (255, 51, 0)).all()
    assert (pixels[[0, 1, 18, 19]] == 0).all()


# --- colour profiles ---


def rotated_primaries() -> bytes:
    """The profile of an RGB space whose red is sRGB's green and so on: no number means the same."""
    profile = bytearray(SRGB)
    tags = {}
    for i in range(int.from_bytes(profile[128:132])):
        entry = 132 + 12 * i
        tags[bytes(profile[entry : entry + 4])] = entry
    red, green, blue = (bytes(profile[tags[t] + 4 : tags[t] + 12]) for t in (b"rXYZ", b"gXYZ", b"bXYZ"))
    for tag, where in ((b"rXYZ", green), (b"gXYZ", blue), (b"bXYZ", red)):
        profile[tags[tag] + 4 : tags[tag] + 12] = where
    return bytes(profile)


def test_a_profile_is_used_inside_the_mask_and_untouched_outside() -> None:
    photograph = Photograph(
        np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8), None, rotated_primaries()
    )
    mask = np.zeros((8, 8), np.float32)
    mask[2:6, 2:6] = 1
    red = np.broadcast_to(np.float32([1, 0, 0]), (8, 8, 3)).copy()  # sRGB, as models paint
    result = reconstruct("stitch", made(photograph, Box(0, 0, 8, 8), mask, red, 0))
    # Red is the third channel there. Within 2 levels: profiles hold 16-bit fixed-point numbers.
    np.testing.assert_allclose(
        result.pixels[3, 3].astype(int), (0, 0, 255), atol=2, err_msg="sRGB red in that space"
    )
    np.testing.assert_array_equal(result.pixels[mask == 0], photograph.pixels[mask == 0])
    assert result.icc_profile == photograph.icc_profile


# --- poisson ---


@given(scenes())
def test_poisson_keeps_every_byte_outside_the_mask(given_scene: Scene) -> None:
    result, outside = reconstruct("poisson", given_scene), given_scene.mask == 0
    assert result.pixels[outside].tobytes() == given_scene.photograph.pixels[outside].tobytes()


@pytest.mark.parametrize(
    "where", [np.s_[2:6, 2:6], np.s_[0:5, 3:8], np.s_[:, 4:], np.s_[7:, 7:], np.s_[3, 3]]
)
def test_poisson_takes_away_a_shift_of_colour(where: Any) -> None:
    """The photograph made lighter by one value has its gradients: pasting gives the photograph, also
    where the mask reaches the border or is a single pixel."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (8, 8, 3)).astype(np.uint8)
    mask = np.zeros((8, 8), np.float32)
    mask[where] = 1
    lighter = made(Photograph(pixels), WHOLE, mask, ((pixels + 40) / 255).astype(np.float32), 0)
    np.testing.assert_array_equal(reconstruct("poisson", lighter).pixels, pixels)


def test_poisson_meets_the_photograph_just_outside_the_crop() -> None:
    """A mask that fills the crop is joined to the pixels around the crop."""
    photograph = Photograph(np.full((8, 8, 3), 90, np.uint8))
    mask = np.zeros((8, 8), np.float32)
    mask[2:6, 2:6] = 1
    light = np.full((4, 4, 3), 0.8, np.float32)
    assert (reconstruct("poisson", made(photograph, Box(2, 2, 4, 4), mask, light, 0)).pixels == 90).all()


def test_poisson_of_a_mask_over_everything_is_the_generated_picture() -> None:
    everything = replace(scene(), mask=np.ones((8, 8), np.float32))
    np.testing.assert_array_equal(
        reconstruct("poisson", everything).pixels, reconstruct("none", everything).pixels
    )


# --- latents and decoder ---


@pytest.mark.parametrize("way", TUNED)
def test_tuning_brings_the_background_back_and_holds_the_edit(way: Reconstruction) -> None:
    start = reconstruct("none", scene())
    tuned = changed(scene(), tune_steps=400, tune_lr=0.02, tune_weight=10)
    if way == "decoder":  # one colour for everything cannot be two; give it a place to tell them by
        picture = tuned.decoded.copy()
        picture[:, :4, 0] = 0.1
        tuned = replace(tuned, decoded=picture, z_0=to_tensor(picture))
    result, inside = reconstruct(way, tuned), scene().mask > 0
    assert fidelity(scene().photograph, start, scene().mask).max_error == 153
    assert fidelity(scene().photograph, result, scene().mask).max_error < 20
    assert np.abs(result.pixels[inside].astype(int) - 204).max() < 20, "the edit went with the background"


@pytest.mark.parametrize("way", TUNED)
def test_without_the_foreground_term_the_edit_is_let_go(way: Reconstruction) -> None:
    free = changed(scene(), tune_steps=100, tune_lr=0.02, tune_foreground=False)
    held = changed(scene(), tune_steps=100, tune_lr=0.02, tune_weight=0.01, tune_loss="area")
    inside = scene().mask > 0
    drift = [np.abs(reconstruct(way, s).pixels[inside].astype(int) - 204).max() for s in (free, held)]
    assert drift[1] < 20
    if way == "decoder":  # the latent's cells are apart: without the term, nothing moves them
        assert drift[0] > 100
    else:
        assert drift[0] == 0


@pytest.mark.parametrize("way", TUNED)
def test_tuning_stops_at_the_psnr_asked_for(way: Reconstruction) -> None:
    reported: list[int] = []
    reconstruct(
        way,
        changed(scene(), tune_steps=500, tune_lr=0.02, tune_psnr=20, tune_foreground=False),
        reported.append,
    )
    assert 2 < len(reported) < 200
    assert reported[-1] == 500, "a bar that stops early must still end full"


@pytest.mark.parametrize("way", TUNED)
@pytest.mark.parametrize("loss", ["mean", "area"])
@pytest.mark.parametrize("inside", [0, 1])
def test_tuning_with_nothing_on_one_side_of_the_mask(way: Reconstruction, loss: Any, inside: int) -> None:
    one_sided = replace(scene(), mask=np.full((8, 8), inside, np.float32))
    result = reconstruct(way, changed(one_sided, tune_loss=loss, tune_steps=20))
    if inside:
        np.testing.assert_array_equal(result.pixels, reconstruct("none", one_sided).pixels)


@pytest.mark.parametrize("way", TUNED)
@given(given_scene=scenes())
def test_exact_keeps_every_byte_outside_the_mask(way: Reconstruction, given_scene: Scene) -> None:
    result, outside = reconstruct(way, changed(given_scene, exact=True)), given_scene.mask == 0
    assert result.pixels[outside].tobytes() == given_scene.photograph.pixels[outside].tobytes()


@pytest.mark.parametrize("dtype", DEPTHS)
def test_exact_steps_at_the_edge_as_far_as_tuning_alone(dtype: Any) -> None:
    """What the tuned picture is off by at the edge is added within: no new seam, and far inside nothing."""
    tuned = reconstruct("decoder", changed(scene(dtype, feather=3), tune_steps=1))
    kept = reconstruct("decoder", changed(scene(dtype, feather=3), tune_steps=1, exact=True))
    steps = [np.diff(picture.pixels[4, :, 0].astype(np.int64))[3] for picture in (tuned, kept)]
    off = int(scene(dtype).photograph.pixels[4, 3, 0]) - int(tuned.pixels[4, 3, 0])
    assert abs(off) > np.iinfo(dtype).max / 10
    assert abs(steps[1] - steps[0]) <= 1  # rounding
    np.testing.assert_array_equal(kept.pixels[:, 7], tuned.pixels[:, 7])


def test_the_last_blocks_alone_are_tuned_and_the_others_run_once() -> None:
    ran = []

    def decoder() -> torch.nn.Sequential:
        blocks = torch.nn.Sequential(*(painter(1) for _ in range(3)))
        blocks[0].register_forward_hook(lambda *_: ran.append("first"))
        blocks[2].register_forward_hook(lambda *_: ran.append("last"))
        made.append(blocks)
        return blocks

    made: list[torch.nn.Sequential] = []
    reconstruct("decoder", changed(replace(scene(), decoder=decoder), tune_blocks=2, tune_steps=4))
    assert ran.count("first") == 1
    assert ran.count("last") == 1 + 4 + 1
    moved = [any(bool((w != v).any()) for w, v in zip(b.parameters(), painter(1).parameters(), strict=True))
             for b in made[0]]  # fmt: skip
    assert moved == [False, True, True]


@pytest.mark.parametrize("way", TUNED)
def test_the_fast_tuner_gets_as_far_in_a_quarter_of_the_steps(way: Reconstruction) -> None:
    paper, fast = (
        reconstruct(way, changed(scene(), tune_foreground=False, **options))
        for options in (
            {"tune_steps": 80, "tune_lr": 4e-3},
            {"tuner": "fast", "tune_steps": 20, "tune_lr": 1e-2},
        )
    )
    errors = [fidelity(scene().photograph, result, scene().mask).max_error for result in (paper, fast)]
    assert errors[1] <= errors[0] < 140


@pytest.mark.parametrize("way", TUNED)
def test_the_fast_tuner_moves_a_copy_of_the_latent(way: Reconstruction) -> None:
    """And gets somewhere with it alone: the rate of the weights is next to nothing here."""
    fast = changed(scene(), tuner="fast", tune_lr=1e-7, tune_steps=20)
    reached = fidelity(fast.photograph, reconstruct(way, fast), fast.mask).max_error
    assert reached < fidelity(fast.photograph, reconstruct("none", fast), fast.mask).max_error / 2
    assert torch.equal(fast.z_0, scene().z_0)


def test_the_fast_tuner_joins_the_edit_to_the_photograph_as_stitching_does() -> None:
    fast = changed(scene(feather=3), tuner="fast", tune_steps=200, tune_weight=1)
    result, stitched = reconstruct("latents", fast), reconstruct("stitch", fast)
    np.testing.assert_allclose(result.pixels, stitched.pixels, atol=3)  # the last steps of Adam
    assert np.ptp(stitched.pixels[:, 4:].astype(int)) > 50


def test_the_models_own_decoder_stays_what_it_is(tiny_model: UNetModel) -> None:
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    before = tiny_model.decode(z)
    copy = tiny_model.decoder()
    with torch.no_grad():
        torch.testing.assert_close(copy(z), before)  # float32 either way
        for weight in copy.parameters():
            weight += 1
    assert torch.equal(tiny_model.decode(z), before)
