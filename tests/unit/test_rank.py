"""Ranking: what is looked at, and an order that depends on the scores alone."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bld import Editor, ModelUnavailable
from bld.masks import FloatArray
from bld.rank import load_ranker, rank, views
from tests.tiny import GaussianModel, tiny_clip, tiny_siglip

MASK = np.zeros((8, 8), np.float32)
MASK[2:5, 3:7] = 1
PICTURE = np.random.default_rng(0).random((8, 8, 3), np.float32) * 0.9 + 0.05


class Redness:
    """Scores a picture by its mean red, or as told."""

    name, revision = "redness", "1"

    def __init__(self) -> None:
        self.seen: list[FloatArray] = []

    def score(self, picture: FloatArray, prompt: str) -> float:
        self.seen.append(picture)
        return float(picture[..., 0].mean())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "clip")


def test_views_are_the_edit_on_black_its_box_and_the_whole() -> None:
    (masked,) = views(PICTURE, MASK, "masked")
    assert (masked[MASK == 0] == 0).all()
    np.testing.assert_array_equal(masked[MASK > 0], PICTURE[MASK > 0])
    (crop,) = views(PICTURE, MASK, "crop")
    np.testing.assert_array_equal(crop, PICTURE[2:5, 3:7])
    every = views(PICTURE, MASK, "ensemble")
    assert len(every) == 3
    for view, expected in zip(every, (masked, crop, PICTURE), strict=True):
        np.testing.assert_array_equal(view, expected)


@given(st.lists(st.sampled_from([0.1, 0.5, 0.9, math.nan, math.inf, -math.inf]), min_size=1, max_size=12))
def test_best_first_ties_in_their_order_and_nonsense_last(values: list[float]) -> None:
    class Told:
        name, revision = "told", "1"

        def score(self, picture: FloatArray, prompt: str) -> float:
            return values[int(picture[0, 0, 0])]

    pictures = [np.full((2, 2, 3), i, np.float32) for i in range(len(values))]
    ranking = rank(Told(), pictures, np.ones((2, 2), np.float32), "a cat", "masked")
    np.testing.assert_array_equal(ranking.scores, values)
    assert sorted(ranking.order) == list(range(len(values)))
    ordered = [values[i] for i in ranking.order]
    finite = [v for v in ordered if math.isfinite(v)]
    assert finite == sorted(finite, reverse=True)
    assert not any(math.isfinite(v) for v in ordered[len(finite) :])
    for first, second in zip(ranking.order, ranking.order[1:], strict=False):
        if values[first] == values[second]:
            assert first < second


@pytest.mark.parametrize("by", ["masked", "crop", "ensemble"])
def test_an_edit_comes_in_the_rankers_order_with_its_scores(by: Any) -> None:
    photo = np.full((90, 120, 3), 60, np.uint8)
    mask = np.zeros((90, 120), bool)
    mask[20:60, 30:80] = True
    plain = Editor(GaussianModel()).edit(photo, mask, "a wall", candidates=6, seed=0, steps=4)
    ranker = Redness()
    ranked = Editor(GaussianModel(), ranker).edit(
        photo, mask, "a wall", candidates=6, seed=0, steps=4, rank_by=by
    )
    scores = [c.score for c in ranked.candidates]
    assert None not in scores
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert sorted(c.seed for c in ranked.candidates) == [0, 1, 2, 3, 4, 5]
    assert [c.seed for c in ranked.candidates] != [c.seed for c in plain.candidates]
    by_seed = {c.seed: c for c in plain.candidates}
    for candidate, z, seed in zip(ranked.candidates, ranked.latents.z_0, ranked.latents.seeds, strict=True):
        assert candidate.seed == seed
        np.testing.assert_array_equal(candidate.photograph.pixels, by_seed[seed].photograph.pixels)
        assert torch.equal(z, plain.latents.z_0[seed])
    fewer = Editor(GaussianModel(), Redness()).edit(
        photo, mask, "a wall", candidates=6, seed=0, steps=4, rank_by=by, batch_size=1
    )
    assert [(c.seed, c.score) for c in fewer.candidates] == [(c.seed, c.score) for c in ranked.candidates]


def test_the_ranker_sees_the_photograph_around_the_edit() -> None:
    photo = np.full((64, 64, 3), 60, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    ranker = Redness()
    Editor(GaussianModel(), ranker).edit(photo, mask, "red", candidates=1, seed=0, steps=4)
    whole = ranker.seen[-1]
    np.testing.assert_allclose(whole[~mask], 60 / 255, atol=1e-6)
    assert whole[mask][:, 0].mean() > 0.9


def test_a_clip_folder_scores_by_cosine(clip: Path) -> None:
    ranker = load_ranker(str(clip), "mini", device="cpu")
    scores = [ranker.score(PICTURE, prompt) for prompt in ("a red apple", "a guitar on a table")]
    assert all(-1 <= score <= 1 for score in scores)
    assert scores[0] != scores[1], "it does not read the prompt"
    assert ranker.score(PICTURE, "a red apple") == scores[0]
    dark = ranker.score(PICTURE * 0.2, "a red apple")
    assert dark != scores[0], "it does not look at the picture"
    assert math.isfinite(ranker.score(PICTURE, "apple " * 200))


@pytest.mark.parametrize("height", [1, 2, 3, 4])
def test_a_box_of_a_few_rows_is_seen_in_its_colours(clip: Path, height: int) -> None:
    """Rows like channels, 1, 3 or 4 of them, are still rows."""
    ranker = load_ranker(str(clip), "mini", device="cpu")
    red, blue = np.zeros((2, height, 9, 3), np.float32)
    red[..., 0] = blue[..., 2] = 1
    assert ranker.score(red, "a red apple") != ranker.score(blue, "a red apple")


def test_the_ends_of_a_long_box_are_seen(clip: Path) -> None:
    """CLIP's own preprocessing would crop the middle."""
    ranker = load_ranker(str(clip), "mini", device="cpu")
    long = np.tile(PICTURE, (1, 4, 1))
    ends = long.copy()
    ends[:, :6] = ends[:, -6:] = 0
    assert ranker.score(ends, "a red apple") != ranker.score(long, "a red apple")


def test_a_prompt_is_read_once_for_all_views(clip: Path) -> None:
    ranker = load_ranker(str(clip), "mini", device="cpu")
    read: list[int] = []
    ranker.network.text_model.register_forward_pre_hook(lambda *_: read.append(1))
    for prompt in ("a red apple", "a cat", "a red apple"):
        rank(ranker, [PICTURE, PICTURE * 0.5], MASK, prompt, "ensemble")
    assert len(read) == 2


def test_what_is_not_a_clip_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="not a model that ranks") as error:
        load_ranker(str(tmp_path), "mini", device="cpu")
    assert "\n" not in str(error.value)
    with pytest.raises(ModelUnavailable, match="unknown model nothing"):
        load_ranker("nothing", "mini", device="cpu")


def test_another_kind_of_model_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ModelUnavailable, match=r"names the type blip\); known are clip, siglip") as error:
        load_ranker(str(tmp_path), "mini", device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["pickscore", "siglip"])
def test_a_ranker_is_as_sure_as_its_own_model(kind: str, tmp_path: Path) -> None:
    """Its cosine, times the model's scale and with its bias, is what the model's own forward gives."""
    import transformers

    if kind == "siglip":
        folder, scale = tiny_siglip(tmp_path), "SiglipModel"
    else:
        folder, scale = tiny_clip(tmp_path, hidden_act="gelu"), "CLIPModel"  # as CLIP ViT-H has it
    model = getattr(transformers, scale).from_pretrained(folder).eval()
    ranker = load_ranker(str(folder), "mini", device="cpu")
    pixels = np.rint(PICTURE * 255).astype(np.uint8)
    seen = ranker.processor(images=pixels, return_tensors="pt").pixel_values
    for prompt in ("a red apple", "a guitar on a table"):
        if kind == "siglip":  # as its authors' code has it: 24 tokens, no mask
            ids = ranker.tokenizer(prompt)["input_ids"]
            words = {"input_ids": torch.tensor([(ids + [0] * 24)[:24]])}
        else:
            words = dict(ranker.tokenizer(prompt, return_tensors="pt"))
        with torch.no_grad():
            expected = model(pixel_values=seen, **words).logits_per_image.item()
        bias = model.logit_bias.item() if kind == "siglip" else 0
        found = ranker.score(PICTURE, prompt) * model.logit_scale.exp().item() + bias
        assert found == pytest.approx(expected, abs=1e-4)
    assert ranker.score(PICTURE, "a red apple") != ranker.score(PICTURE, "a guitar on a table")
    assert math.isfinite(ranker.score(PICTURE, "apple " * 200))


def test_siglip_reads_capitals_as_it_was_trained_to(tmp_path: Path) -> None:
    ranker = load_ranker(str(tiny_siglip(tmp_path)), "mini", device="cpu")
    assert ranker.tokenizer("A")["input_ids"] != ranker.tokenizer("a")["input_ids"], "it proves nothing"
    assert ranker.score(PICTURE, "A Red Apple") == ranker.score(PICTURE, "a red apple")


def test_a_ranker_of_the_hub_is_fetched_whole(monkeypatch: pytest.MonkeyPatch, clip: Path) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(clip)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    ranker = load_ranker("owner/clip", "mini", device="cpu")
    assert ranker is not None
    assert (ranker.name, asked["name"]) == ("owner/clip", "owner/clip")
    mine = [path.name for path in clip.iterdir()]
    taken = filter_repo_objects(
        [*mine, "pytorch_model.bin", "tf_model.h5"],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert sorted(taken) == sorted(mine)


def test_a_model_without_a_ranker_has_none_unless_one_is_named(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "model").mkdir()
    assert load_ranker("auto", str(tmp_path / "model")) is None
    assert load_ranker("none", "mini") is None
    shutil.copytree(clip, tmp_path / "model" / "ranker")
    own = load_ranker("auto", str(tmp_path / "model"), device="cpu")
    assert own is not None
    assert own.name == f"{tmp_path / 'model'}/ranker"


def test_a_ranker_that_lacks_weights_is_refused(tmp_path: Path, clip: Path) -> None:
    """transformers itself would go on with random numbers."""
    folder = shutil.copytree(clip, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"lack 1 tensors, such as visual_projection.weight"):
        load_ranker(str(folder), "mini", device="cpu")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="pickled"):
        load_ranker(str(folder), "mini", device="cpu")
