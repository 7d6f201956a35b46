"""The editor: what goes in, what is refused, what comes back.

Most tests run the exact model of tests/tiny.py, which paints the colour that the prompt names; what
depends on a real network runs on the tiny Stable Diffusion folder.
"""

import dataclasses
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from bld import Editor, encoded
from bld.blend import blend
from bld.editor import EditResult
from bld.errors import Cancelled, InvalidInput
from bld.images import open_photograph, to_pil
from bld.masks import Box, Crop
from bld.models.unet import UNetModel
from bld.options import EditOptions
from bld.png import encode_png
from bld.task import HIDDEN, Task, check
from tests.tiny import TINY_SIZE, GaussianModel

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (90, 120, 3)).astype(np.uint8)
NATIVE = PHOTO[:TINY_SIZE, :TINY_SIZE]
RED = "a red thing"
STAGES = ["encode", "blend", "decode", "reconstruct"]


@pytest.fixture
def model() -> GaussianModel:
    return GaussianModel()


@pytest.fixture
def editor(model: GaussianModel) -> Editor:
    return Editor(model)


def box_mask(photo: np.ndarray, box: Box) -> np.ndarray:
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[box.slices] = 255
    return mask


MASK = box_mask(PHOTO, Box(20, 30, 40, 50))
NATIVE_MASK = box_mask(NATIVE, Box(16, 24, 20, 30))


def edit(
    editor: Editor, photo: Any = PHOTO, mask: Any = MASK, prompt: str = RED, **options: Any
) -> EditResult:
    return editor.edit(photo, mask, prompt, **{"seed": 0, "steps": 3, "candidates": 1, **options})


def pixels(result: EditResult, candidate: int = 0) -> np.ndarray:
    return result.candidates[candidate].photograph.pixels


# --- what comes back ---


@pytest.mark.parametrize("family", ["ddim", "flow"])
def test_the_prompt_is_painted_inside_the_mask_and_nowhere_else(family: Any) -> None:
    """At the model's own size and without a feather, every pixel of the mask is the model's."""
    model = GaussianModel(family)
    result = edit(Editor(model), NATIVE, NATIVE_MASK, feather=0, steps=20)
    inside = NATIVE_MASK > 0
    colour = pixels(result)[inside].mean(0) / 255
    # The model's spread is 0.05 on [-1, 1]; what lies beyond pure red is cut, so the mean leans in.
    np.testing.assert_allclose(colour, (1, 0, 0), atol=model.spread)
    np.testing.assert_array_equal(pixels(result)[~inside], NATIVE[~inside])
    assert result.best.fidelity[:3] == (0.0, None, 1.0)


@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    extent=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_any_photograph_keeps_its_size_and_every_byte_outside(
    size: tuple[int, int], corner: tuple[float, float], extent: tuple[float, float]
) -> None:
    photo = np.full((*size, 3), (0, 0, 200), np.uint8)
    start = [int(c * (side - 1)) for c, side in zip(corner, size, strict=True)]
    length = [1 + int(e * (side - at - 1)) for e, side, at in zip(extent, size, start, strict=True)]
    mask = box_mask(photo, Box(*start, *length))
    result = edit(Editor(GaussianModel()), photo, mask)
    assert result.best.photograph.size == size
    outside = mask == 0
    assert pixels(result)[outside].tobytes() == photo[outside].tobytes()
    middle = (start[0] + length[0] // 2, start[1] + length[1] // 2)
    red, _, blue = (int(value) for value in pixels(result)[middle])
    # However small the mask. A pixel at a cell's edge is interpolated with the blue beyond it, but
    # its middle lies inside the cell: at least half of it (127, less the model's spread) is red.
    assert red > 100
    assert blue < 120


@given(at=st.integers(0, 87), upright=st.booleans())
def test_a_line_of_three_pixels_is_painted_wherever_it_lies(at: int, upright: bool) -> None:
    photo = np.full((90, 120, 3), (0, 0, 200), np.uint8)
    mask = np.zeros((90, 120), np.uint8)
    line = (slice(10, 80), slice(at, at + 3)) if upright else (slice(at, at + 3), slice(10, 110))
    mask[line] = 255
    result = edit(Editor(GaussianModel()), photo, mask)
    painted = pixels(result)[line]
    middle = painted[:, 1] if upright else painted[1]
    assert (middle[3:-3, 0] > 100).all()  # unbroken; its two ends are feathered


def test_a_line_of_three_pixels_is_edited_by_a_network_too(tiny_editor: Editor) -> None:
    mask = box_mask(PHOTO, Box(40, 10, 3, 100))
    result = edit(tiny_editor, mask=mask, prompt="a guitar")
    inside = mask > 0
    # Two photographs of noise differ by 64 levels on average (of 256, a quarter).
    assert np.abs(pixels(result)[inside].astype(int) - PHOTO[inside]).mean() > 10
    np.testing.assert_array_equal(pixels(result)[~inside], PHOTO[~inside])


def test_what_was_painted_is_not_shifted(editor: Editor) -> None:
    """`none` shows what the decoder drew: a square around the mask's own centre."""
    photo = np.full((256, 256, 3), (0, 0, 200), np.uint8)
    mask = box_mask(photo, Box(104, 72, 64, 64))
    drawn = pixels(edit(editor, photo, mask, context=2, reconstruct="none"))[..., 0] > 128
    rows, columns = np.nonzero(drawn)
    # The crop is 128 px, twice the model's 64: a cell is 16 px, and the mask is 4 cells by 4 cells.
    np.testing.assert_allclose((rows.mean(), columns.mean()), (135.5, 103.5), atol=0.5)
    assert 64 <= np.ptp(rows) + 1 <= 64 + 2


def test_a_photograph_of_the_models_size_runs_whole(editor: Editor) -> None:
    result = edit(editor, NATIVE, NATIVE_MASK)
    assert result.crop == Crop(Box(0, 0, TINY_SIZE, TINY_SIZE), (TINY_SIZE, TINY_SIZE))


def test_any_other_photograph_runs_on_a_crop_around_the_mask(editor: Editor) -> None:
    photo = np.zeros((400, 600, 3), np.uint8)
    mask = box_mask(photo, Box(100, 300, 50, 40))
    box, size = edit(editor, photo, mask).crop
    assert size == (TINY_SIZE, TINY_SIZE)
    assert box.height == box.width == 100  # 50 px and as much again: 32 of the model's 64
    assert (box.top, box.left) == (75, 270)


def test_a_crop_is_encoded_once_and_the_oldest_is_forgotten(
    editor: Editor, model: GaussianModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "REMEMBERED", 2)
    seen: list[torch.Tensor] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda x: (seen.append(x), encode(x))[1])
    first = pixels(edit(editor))
    again = pixels(edit(editor, strength=0.5, seed=3))
    assert len(seen) == 1
    assert not np.array_equal(first, again)
    np.testing.assert_array_equal(pixels(edit(Editor(model))), first)
    seen.clear()
    others = [np.roll(PHOTO, shift, axis=0) for shift in (1, 2)]
    for photo in (*others, others[0], PHOTO):
        edit(editor, photo)
    assert len(seen) == 3, "two others, one of them remembered, and the first anew"


def test_the_round_trip_is_the_photograph_through_the_autoencoder(
    editor: Editor, model: GaussianModel
) -> None:
    result = edit(editor, NATIVE, NATIVE_MASK)
    cells = NATIVE.reshape(8, 8, 8, 8, 3).mean((1, 3)).repeat(8, 0).repeat(8, 1)
    # Float32 on the way, and half a level of rounding at the end.
    np.testing.assert_allclose(result.round_trip.pixels, cells, atol=0.51)


def test_none_shows_what_the_decoder_gives(editor: Editor) -> None:
    result = edit(editor, NATIVE, NATIVE_MASK, reconstruct="none")
    cell = (slice(0, 8), slice(0, 8))  # far from the mask: the latents there are the photograph's
    np.testing.assert_array_equal(pixels(result)[cell], result.round_trip.pixels[cell])
    assert result.best.fidelity.max_error > 50
    assert result.best.fidelity.psnr is not None


def test_a_result_says_what_was_asked_and_how_long_it_took(editor: Editor) -> None:
    result = edit(editor)
    assert (result.prompt, result.model, result.revision) == (RED, "gaussian", "exact")
    np.testing.assert_array_equal(result.photograph.pixels, PHOTO)
    np.testing.assert_array_equal(result.mask, MASK > 0)
    assert list(result.seconds) == STAGES
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert result.best is result.candidates[0]


# --- what a photograph carries ---


def test_an_edit_of_what_is_transparent_is_said(editor: Editor) -> None:
    alpha = np.full(MASK.shape, 255, np.uint8)
    alpha[:10] = 0  # outside the mask
    assert HIDDEN not in edit(editor, np.dstack([PHOTO, alpha])).notes
    alpha[30, 40] = 0
    result = edit(editor, np.dstack([PHOTO, alpha]))
    assert HIDDEN in result.notes
    np.testing.assert_array_equal(result.best.photograph.alpha, alpha)


def test_alpha_profile_and_16_bits_are_kept(editor: Editor) -> None:
    deep = RNG.integers(0, 65536, (90, 120, 4)).astype(np.uint16)
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = encode_png(deep[..., :3], alpha=deep[..., 3], icc_profile=icc)
    photograph = edit(editor, file).best.photograph
    assert photograph.pixels.dtype == np.uint16
    np.testing.assert_array_equal(photograph.alpha, deep[..., 3])
    assert photograph.icc_profile == icc
    np.testing.assert_array_equal(photograph.pixels[MASK == 0], deep[MASK == 0, :3])
    assert (photograph.pixels[MASK > 0] != deep[MASK > 0, :3]).any()
    picture = to_pil(photograph)
    assert (picture.mode, picture.size, picture.info["icc_profile"]) == ("RGBA", (120, 90), icc)


def test_a_turned_photograph_is_edited_upright(editor: Editor) -> None:
    """EXIF orientation 6: the file lies on its side, the mask is drawn on what a viewer shows."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(np.rot90(PHOTO).copy()).save(file, "PNG", exif=exif)
    result = edit(editor, file.getvalue())
    assert result.best.photograph.size == PHOTO.shape[:2]
    np.testing.assert_array_equal(pixels(result), pixels(edit(editor)))
    assert "EXIF orientation 6 applied" in result.notes


@pytest.mark.parametrize("kind", ["path", "text path", "bytes", "PIL", "array"])
def test_photograph_and_mask_may_come_in_any_form(editor: Editor, tmp_path: Path, kind: str) -> None:
    sources = []
    for name, array in (("photo", PHOTO), ("mask", MASK)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(array).save(path)
        forms = {"path": path, "text path": str(path), "bytes": path.read_bytes()}
        sources.append({**forms, "PIL": Image.fromarray(array), "array": array}[kind])
    np.testing.assert_array_equal(pixels(edit(editor, *sources)), pixels(edit(editor)))


def test_the_callers_arrays_are_not_written_to(editor: Editor) -> None:
    photo, mask = PHOTO.copy(), MASK.copy()
    photo.flags.writeable = mask.flags.writeable = False
    result = edit(editor, photo, mask)
    assert not np.shares_memory(pixels(result), photo)


# --- the mask ---


def test_an_inverted_mask_edits_the_rest(editor: Editor) -> None:
    inverted = edit(editor, mask=255 - MASK, invert_mask=True)
    np.testing.assert_array_equal(pixels(inverted), pixels(edit(editor)))
    np.testing.assert_array_equal(inverted.mask, MASK > 0)


def test_a_mask_of_another_size_is_refused_unless_it_may_be_resized(editor: Editor) -> None:
    small = MASK[::2, ::2]  # 60 x 45
    with pytest.raises(InvalidInput, match=r"mask is 60x45.*image 120x90.*--resize-mask"):
        edit(editor, mask=small)
    result = edit(editor, mask=small, resize_mask=True)
    np.testing.assert_array_equal(result.mask, MASK > 0)  # its box has even corners
    assert "mask resized from 60x45 to 120x90" in result.notes


def test_grey_is_cut_at_one_half_where_it_is_not_meant_and_says_so(editor: Editor) -> None:
    soft = np.where(MASK > 0, 0.5, 0.49).astype(np.float32)
    result = edit(editor, mask=soft, soft_mask=False)
    np.testing.assert_array_equal(result.mask, MASK > 0)
    assert any("cut at one half" in note for note in result.notes)
    assert not any("one half" in note for note in edit(editor).notes)


def test_a_feathered_mask_is_soft_and_leaves_what_is_black(editor: Editor) -> None:
    ramp = np.clip(1.2 - np.abs(np.linspace(-2, 2, NATIVE.shape[1], dtype=np.float32)), 0, 1)
    soft = np.repeat(ramp[None], NATIVE.shape[0], 0)
    result = edit(editor, NATIVE, soft, steps=20)
    assert result.options.soft_mask is True
    assert result.options.shrink is False
    assert "grey values of the mask begin the edit later" in result.notes
    before, after = NATIVE.astype(int), pixels(result).astype(int)
    np.testing.assert_array_equal(after[soft == 0], before[soft == 0])
    assert (after[soft > 0] != before[soft > 0]).any(-1).mean() > 0.9, "the grey was edited too"
    with pytest.raises(InvalidInput, match="--shrink is for hard masks"):
        edit(editor, NATIVE, soft, shrink=True)
    with pytest.raises(InvalidInput, match="the mask is empty"):
        edit(editor, NATIVE, soft * 0, soft_mask=True)


def test_what_is_nearly_black_in_a_soft_mask_is_not_edited(editor: Editor) -> None:
    """A network's mask is nowhere quite black: all of the photograph would be edited."""
    y, x = np.mgrid[: MASK.shape[0], : MASK.shape[1]]
    distance = np.hypot(y - 40, x - 45)
    result = edit(editor, mask=(1 / (1 + np.exp(distance - 12))).astype(np.float32), soft_mask=True)
    assert result.crop.box.height < MASK.shape[0]
    far = distance > 17
    np.testing.assert_array_equal(pixels(result)[far], result.photograph.pixels[far])
    np.testing.assert_array_equal(result.mask[far], 0)
    assert "what is fainter in it than 1% is not edited" in result.notes


def test_the_darker_the_mask_the_later_its_edit_begins(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []

    def spied(trajectory: Any, z_init: Any, m_latent: Any, *rest: Any) -> Any:
        seen.append([float(m.sum()) for m in m_latent])
        return blend(trajectory, z_init, m_latent, *rest)

    monkeypatch.setattr("bld.process.blend", spied)
    steps = np.repeat(np.float32([0, 0.25, 0.5, 1]), NATIVE.shape[1] // 4)
    edit(editor, NATIVE, np.repeat(steps[None], NATIVE.shape[0], 0), steps=4)
    assert seen == [[16.0, 16.0, 32.0, 48.0]]


def test_the_notes_say_which_channel_was_the_mask(editor: Editor) -> None:
    drawn = np.dstack([PHOTO, MASK])  # a photograph whose alpha is the mask
    by_alpha, by_luminance = edit(editor, mask=drawn), edit(editor)
    np.testing.assert_array_equal(by_alpha.mask, by_luminance.mask)
    assert any("alpha" in note for note in by_alpha.notes)
    assert any("luminance" in note for note in by_luminance.notes)


def test_thin_masks_shrink_and_others_do_not_unless_told(editor: Editor) -> None:
    line = box_mask(PHOTO, Box(40, 10, 3, 100))
    assert edit(editor, mask=line).options.shrink is True
    assert edit(editor, NATIVE, NATIVE_MASK).options.shrink is False
    assert edit(editor, mask=line, shrink=False).options.shrink is False
    assert edit(editor, NATIVE, NATIVE_MASK, shrink=True).options.shrink is True


def test_a_shrinking_mask_starts_wider(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []

    def spied(trajectory: Any, z_init: Any, m_latent: Any, *rest: Any) -> Any:
        seen.append([float(m.sum()) for m in m_latent])
        return blend(trajectory, z_init, m_latent, *rest)

    monkeypatch.setattr("bld.process.blend", spied)
    line = box_mask(NATIVE, Box(30, 8, 1, 48))
    edit(editor, NATIVE, line, steps=4)
    edit(editor, NATIVE, line, steps=4, shrink=False)
    shrinking, constant = seen
    # Six cells in a row. On 8 x 8 the paper's radii of 3, 2 and 1 cells become 1, 1 and 0.
    assert constant == [6.0] * 4
    assert shrinking == [24.0, 24.0, 6.0, 6.0]


def test_the_feather_is_half_a_latent_cell_of_the_photograph(editor: Editor) -> None:
    assert edit(editor, NATIVE, NATIVE_MASK).options.feather == 4
    photo = np.zeros((640, 640, 3), np.uint8)
    assert edit(editor, photo, np.full((640, 640), 255, np.uint8)).options.feather == 40
    assert edit(editor, feather=0).options.feather == 0


# --- refusals, before the model runs ---


def cut_jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "JPEG")
    return file.getvalue()[:-400]


BAD = {
    "no such photograph": ({"photo": "nowhere.png"}, r"nowhere\.png does not exist"),
    "no such mask": ({"mask": "nowhere.png"}, r"mask nowhere\.png does not exist"),
    "text": ({"photo": b"not a picture"}, "not a picture that can be read"),
    "truncated": ({"photo": cut_jpeg()}, "damaged or cut short"),
    "no pixels": ({"photo": np.zeros((0, 5, 3), np.uint8)}, "no pixels"),
    "mask without pixels": ({"mask": np.zeros((5, 0), np.uint8)}, "no pixels"),
    "too large": ({"max_pixels": 10_799}, r"over the limit of 10799; .*--max-pixels"),
    "sizes differ": ({"mask": MASK.T}, r"mask is 90x120.*image 120x90"),
    "empty mask": ({"mask": np.zeros_like(MASK)}, "mask is empty"),
    "inverted full mask": ({"mask": np.full_like(MASK, 255), "invert_mask": True}, "mask is empty"),
    "no prompt": ({"prompt": ""}, "prompt is empty"),
    "blank prompt": ({"prompt": " \n"}, "prompt is empty"),
    "half a character": ({"prompt": "a \ud800 cat"}, "is no text"),
    "no text to avoid": ({"negative_prompt": "\udcff"}, "is no text"),
    "long prompt": ({"prompt": "1 2 3 4 5 6 7 8"}, r"'7 8' would be cut.*--truncate-prompt"),
    "long negative prompt": ({"negative_prompt": "1 2 3 4 5 6 7"}, "negative prompt is longer"),
    "no context left": ({"context_pixels": 64}, "context of 64 pixels"),
    "candidates": ({"candidates": 0}, r"--candidates 0: expected from 1 to 256"),
    "steps": ({"steps": 0}, "--steps 0"),
    "strength": ({"strength": 1.5}, "--strength 1.5"),
    "guidance": ({"guidance_scale": 0.5}, "--guidance-scale 0.5"),
    "reconstruction": ({"reconstruct": "glue"}, "--reconstruct glue"),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_the_model_runs(
    editor: Editor, model: GaussianModel, bad: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        edit(editor, **bad)
    assert "\n" not in str(caught.value)
    assert model.calls == 0


def test_a_text_file_named_png_is_refused(editor: Editor, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_text("not a picture")
    with pytest.raises(InvalidInput, match=r"photo\.png is not a picture"):
        edit(editor, file)


def test_a_long_prompt_is_cut_where_that_is_allowed(editor: Editor) -> None:
    long = f"{RED} 4 5 6 and more"
    result = edit(editor, prompt=long, negative_prompt="1 2 3 4 5 6 7", truncate_prompt=True)
    assert result.prompt == long  # as asked: the notes say what was not read
    assert "the prompt was cut before 'and more'" in result.notes
    assert "the negative prompt was cut before '7'" in result.notes
    np.testing.assert_array_equal(pixels(result), pixels(edit(editor)))


@pytest.mark.parametrize(
    ("asked", "note"),
    [
        ({"negative_prompt": "a cat"}, None),
        ({"guidance_scale": 1}, None),
        ({"guidance_scale": 1, "negative_prompt": "a cat"}, "heeds no negative prompt at --guidance-scale 1"),
        ({"guidance_start": 1.0}, "guidance acts in no step"),
        (
            {"guidance_end": 0.49, "steps": 1},
            "none lies between --guidance-start 0.0 and --guidance-end 0.49",
        ),
        ({"guidance_end": 0.5, "steps": 1}, None),
        ({"guidance_end": 0.2, "strength": 0.5}, "guidance acts in no step"),
        ({"guidance_end": 0.2, "guidance_scale": 1}, None),
    ],
)
def test_guidance_that_acts_nowhere_is_said(
    tiny_editor: Editor, asked: dict[str, Any], note: str | None
) -> None:
    task = check(tiny_editor.model, PHOTO, MASK, "a cat", EditOptions(**{"steps": 4, **asked}))
    found = [line for line in task.notes if "guidance" in line]
    assert len(found) == (note is not None)
    assert (note or "") in "".join(found)


def test_a_networks_own_limit_is_shown_as_text(tiny_editor: Editor) -> None:
    """The tiny tokenizer holds 46 one-token words; the rest comes back as it was written."""
    long = " ".join(["a"] * 46) + " cat on a table"
    with pytest.raises(InvalidInput, match=r"'cat on a table' would be cut"):
        edit(tiny_editor, prompt=long)
    notes = edit(tiny_editor, prompt=long, truncate_prompt=True).notes
    assert "the prompt was cut before 'cat on a table'" in notes


def test_options_come_one_way_or_the_other(editor: Editor) -> None:
    with pytest.raises(TypeError, match="not both"):
        editor.edit(PHOTO, MASK, RED, options=EditOptions(), seed=3)
    with pytest.raises(TypeError, match="brightness"):
        editor.edit(PHOTO, MASK, RED, brightness=3)


# --- seeds and candidates ---


def test_a_seed_makes_the_same_pixels_again(editor: Editor) -> None:
    np.testing.assert_array_equal(pixels(edit(editor, seed=5)), pixels(edit(editor, seed=5)))
    assert (pixels(edit(editor, seed=5)) != pixels(edit(editor, seed=6))).any()


def test_an_edit_can_be_made_again_from_its_result(editor: Editor) -> None:
    """No seed was given: the one that was drawn is in the options, like every other choice."""
    first = editor.edit(PHOTO, MASK, RED, steps=3)
    again = editor.edit(PHOTO, MASK, first.prompt, options=first.options)
    assert again.options == first.options
    for i in range(len(first.candidates)):
        np.testing.assert_array_equal(pixels(again, i), pixels(first, i))


def test_candidates_are_alone_what_they_are_in_a_batch(editor: Editor) -> None:
    together = edit(editor, seed=7, candidates=5, batch_size=5)
    assert [candidate.seed for candidate in together.candidates] == [7, 8, 9, 10, 11]
    in_twos = edit(editor, seed=7, candidates=5, batch_size=2)
    for i, candidate in enumerate(together.candidates):
        alone = edit(editor, seed=candidate.seed)
        np.testing.assert_array_equal(pixels(alone), candidate.photograph.pixels)
        np.testing.assert_array_equal(pixels(in_twos, i), candidate.photograph.pixels)
    assert len({candidate.photograph.pixels.tobytes() for candidate in together.candidates}) == 5


def test_a_networks_candidates_are_alone_what_they_are_in_a_batch(tiny_editor: Editor) -> None:
    together = edit(tiny_editor, prompt="a cat", seed=7, candidates=3)
    for i, candidate in enumerate(together.candidates):
        alone = pixels(edit(tiny_editor, prompt="a cat", seed=candidate.seed))
        # Matrix products of another batch size add up in another order, which moves a pixel by
        # about 1e-4 of a level: it may fall on the other side of one half, no further.
        difference = np.abs(alone.astype(int) - pixels(together, i))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def test_two_edits_may_run_at_once(tiny: Path) -> None:
    tiny_editor, fresh = (Editor.from_pretrained(tiny, device="cpu") for _ in range(2))
    tiny_model = cast(UNetModel, tiny_editor.model)
    modules = (tiny_model.vae, tiny_model.unet, tiny_model.text_encoder)
    before = [value.clone() for module in modules for value in module.state_dict().values()]
    jobs: list[dict[str, Any]] = [
        {"prompt": "a cat", "seed": 1, "steps": 4},
        {"prompt": "a guitar", "seed": 2, "steps": 3, "strength": 0.7},
    ]
    with ThreadPoolExecutor(len(jobs)) as pool:
        at_once = list(pool.map(lambda job: pixels(edit(tiny_editor, **job)), jobs))
    for job, found in zip(jobs, at_once, strict=True):
        np.testing.assert_array_equal(found, pixels(edit(fresh, **job)))
    after = [value for module in modules for value in module.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- choices that reach the model ---


def test_open_choices_are_the_models(tiny_editor: Editor, tiny_model: UNetModel) -> None:
    resolved = edit(tiny_editor, prompt="a cat").options
    assert resolved.guidance_scale == tiny_model.guidance_scale
    assert None not in dataclasses.asdict(resolved).values()
    assert edit(tiny_editor, prompt="a cat", guidance_scale=1).options.guidance_scale == 1


@pytest.mark.parametrize(
    "change",
    [{"prompt": "a guitar"}, {"negative_prompt": "a guitar"}, {"guidance_scale": 6}, {"steps": 4},
     {"strength": 0.5}, {"seed": 1}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_choice_changes_the_picture(tiny_editor: Editor, change: dict[str, Any]) -> None:
    plain = {"prompt": "a cat"}
    assert (pixels(edit(tiny_editor, **{**plain, **change})) != pixels(edit(tiny_editor, **plain))).any()


def test_less_strength_keeps_more_of_the_photograph() -> None:
    """Against a model for which every colour is as good as any other."""
    model = GaussianModel()
    model.spread = 1.0
    change = []
    for strength in (1.0, 0.5, 0.1):
        result = edit(Editor(model), NATIVE, NATIVE_MASK, "a thing", strength=strength, steps=20, feather=0)
        inside = NATIVE_MASK > 0
        change.append(np.abs(pixels(result)[inside].astype(int) - result.round_trip.pixels[inside]).mean())
    assert change[0] > change[1] > 2 * change[2] > 0


# --- progress and cancelling ---


def test_progress_is_reported_by_stage(editor: Editor) -> None:
    reports: list[tuple[str, int, int]] = []
    edit(editor, candidates=3, batch_size=2, steps=5, progress=lambda *report: reports.append(report))
    assert list(dict.fromkeys(stage for stage, _, _ in reports)) == STAGES
    totals = {"encode": 1, "blend": 2 * 5, "decode": 1 + 3, "reconstruct": 3}
    for stage, total in totals.items():
        assert [r[1:] for r in reports if r[0] == stage] == [(done, total) for done in range(total + 1)]


@pytest.mark.parametrize("signal", [Cancelled("enough"), KeyboardInterrupt(), ZeroDivisionError()], ids=repr)
@pytest.mark.parametrize("stage", STAGES)
def test_what_progress_raises_ends_the_edit(
    editor: Editor, model: GaussianModel, stage: str, signal: BaseException
) -> None:
    calls: list[int] = []

    def stop(reached: str, done: int, total: int) -> None:
        if reached == stage:
            calls.append(model.calls)
            raise signal

    with pytest.raises(type(signal)):
        edit(editor, progress=stop)
    assert calls == [model.calls]  # reported once, and the model did not go on


def test_an_edit_can_be_stopped_between_two_steps(editor: Editor, model: GaussianModel) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "blend" and done == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        edit(editor, steps=5, progress=stop)
    assert model.calls == 1 + 2  # one encoding, two steps


# --- several edits in one batch ---


def tasks(editor: Editor, *asked: tuple[str, int], **options: Any) -> list[Task]:
    """Edits of one photograph, each with its prompt, its mask (moved by so many pixels) and its seed."""
    photo = open_photograph(PHOTO, max_pixels=10**8)
    return [
        check(
            editor.model, photo, box_mask(PHOTO, Box(20 + shift, 30, 40, 50)), prompt,
            EditOptions(seed=number, **options),
        )
        for number, (prompt, shift) in enumerate(asked)
    ]  # fmt: skip


def alone(editor: Editor, task: Task) -> EditResult:
    return editor.edit(task.photograph, task.mask, task.prompt, options=task.options)


@given(st.integers(1, 5), st.integers(1, 3))
def test_edits_together_are_what_each_is_alone(batch_size: int, candidates: int) -> None:
    editor = Editor(GaussianModel())
    asked = tasks(
        editor, ("red", 0), ("green", 10), ("blue", 0), steps=3, batch_size=batch_size, candidates=candidates
    )  # fmt: skip
    for task, result in zip(asked, editor.edit_together(asked), strict=True):
        right = alone(editor, task)
        torch.testing.assert_close(result.latents.z_0, right.latents.z_0, rtol=0, atol=0)
        assert [c.seed for c in result.candidates] == [c.seed for c in right.candidates]
        np.testing.assert_array_equal(pixels(result), pixels(right))
        assert result.prompt == task.prompt
        assert set(result.seconds) == set(right.seconds)


def test_a_network_keeps_the_edits_of_a_batch_apart(tiny_editor: Editor) -> None:
    asked = tasks(tiny_editor, ("a red apple", 0), ("a photo of a cat", 10), candidates=1, steps=3)
    for task, result in zip(asked, tiny_editor.edit_together(asked), strict=True):
        off = pixels(result).astype(int) - pixels(alone(tiny_editor, task))
        assert abs(off).max() <= 1  # by rounding: the batch is another


def test_a_crop_of_several_edits_is_encoded_once(editor: Editor, model: GaussianModel) -> None:
    asked = tasks(editor, ("red", 0), ("green", 10), ("blue", 10), steps=3, candidates=1)
    model.calls = 0
    editor.edit_together(asked)
    assert model.calls == 1 + 3 + 2 * 3  # the crop, the steps, and each candidate and round trip decoded
