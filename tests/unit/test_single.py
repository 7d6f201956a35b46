"""Models in one file: the same networks as in a folder of the same weights, or one line that says why not."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bld import BldError, Editor
from bld.models.load import load_model
from bld.models.single import SingleFile
from tests.families import SIDE, checkpoint
from tests.original import single_file

NAMES = ("sd1", "sd2-v", "sdxl", "ldm")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    target = tmp_path_factory.mktemp("folders")

    @cache
    def by_name(name: str) -> Path:
        folder, draws = checkpoint(name, target / name), torch.Generator().manual_seed(0)
        for file in sorted(folder.rglob("*.safetensors")):  # no two norms alike, or a swap would not show
            weights = {k: v + 0.1 * torch.randn(v.shape, generator=draws) for k, v in load_file(file).items()}
            save_file(weights, file, {"format": "pt"})
        return folder

    return by_name


@pytest.fixture(scope="session")
def singles(
    folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """By name: a checkpoint in one file, and its folder without weights."""
    target = tmp_path_factory.mktemp("singles")

    @cache
    def by_name(name: str) -> tuple[Path, Path]:
        file = single_file(folders(name), target / f"{name}.safetensors", open_clip=name == "sd2-v")
        ignored = shutil.ignore_patterns("*.safetensors")
        return file, shutil.copytree(folders(name), target / name, ignore=ignored)

    return by_name


def load(file: Path, config: Path | None = None, **changes: Any) -> Any:
    return load_model(str(file), device="cpu", config=config and str(config), **changes)


def refused(file: Path, config: Path | None = None, **changes: Any) -> str:
    with pytest.raises(BldError) as caught:
        load(file, config, **changes)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message


def edited(model: Any) -> tuple[np.ndarray, torch.Tensor]:
    photo = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[16:48, 20:44] = True
    model.native_size = SIDE
    result = Editor(model).edit(photo, mask, "a red apple", candidates=1, seed=5, steps=3)
    return result.best.photograph.pixels, result.latents.z_0


@pytest.mark.parametrize("name", NAMES)
def test_a_single_file_is_the_same_model_as_its_folder(
    name: str, folders: Callable[[str], Path], singles: Callable[[str], tuple[Path, Path]]
) -> None:
    one, other = load(*singles(name)), load(folders(name))
    for part in other.parts:
        if isinstance(getattr(other, part), torch.nn.Module):
            mine, theirs = getattr(one, part).state_dict(), getattr(other, part).state_dict()
            assert mine.keys() == theirs.keys()
            for key, tensor in theirs.items():
                assert torch.equal(mine[key], tensor), f"{part}.{key}"
            assert not getattr(one, part).training
            assert not any(p.requires_grad for p in getattr(one, part).parameters())
    (pixels, z_0), (expected, expected_z_0) = edited(one), edited(other)
    assert torch.equal(z_0, expected_z_0)
    assert np.array_equal(pixels, expected)
    assert one.revision != other.revision


def test_the_precision_is_that_of_every_part(singles: Callable[[str], tuple[Path, Path]]) -> None:
    model = load(*singles("sdxl"), dtype="bfloat16")
    for part in (model.vae, model.unet, model.text_encoder, model.text_encoder_2):
        assert {p.dtype for p in part.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["sd1", "ldm"])
def test_a_pickle_is_read_only_when_that_is_allowed(
    name: str, folders: Callable[[str], Path], singles: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    file, config = single_file(folders(name), tmp_path / "model.ckpt"), singles(name)[1]
    assert "--allow-pickle" in refused(file, config)
    allowed = load(file, config, allow_pickle=True)
    for mine, theirs in zip(allowed.unet.parameters(), load(*singles(name)).unet.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Evil:
    """What a pickle may do when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def test_a_malicious_pickle_runs_nothing(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    file, marker = tmp_path / "model.ckpt", tmp_path / "ran"
    torch.save({"state_dict": {"model.diffusion_model.x": torch.ones(1)}, "callbacks": Evil(marker)}, file)
    torch.load(file, weights_only=False)
    assert marker.is_file(), "the pickle is harmless: it proves nothing"
    marker.unlink()
    assert "objects beside weights" in refused(file, folders("sd1"), allow_pickle=True)
    assert not marker.exists()


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
@pytest.mark.parametrize("damage", ["lost", "of another shape"])
def test_weights_that_do_not_fit_are_never_made_up(
    part: str, damage: str, singles: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    file, config = singles("sd1")
    weights = load_file(file)
    within = {"vae": "first_stage_model.", "unet": "model.diffusion", "text_encoder": "cond_stage"}[part]
    key = next(key for key in sorted(weights) if key.startswith(within) and "norm" in key)
    weights[key] = weights[key][:1].clone()
    if damage == "lost":
        del weights[key]
    save_file(weights, tmp_path / "model.safetensors")
    assert f"cannot load its {part}" in refused(tmp_path / "model.safetensors", config)


def test_files_of_something_else_are_refused(
    singles: Callable[[str], tuple[Path, Path]], folders: Callable[[str], Path], tmp_path: Path
) -> None:
    file, config = singles("sd1")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-9])
    assert "remove it and fetch the model again" in refused(cut, config)
    save_file({"lora_unet.down.weight": torch.ones(1)}, tmp_path / "lora.safetensors")
    assert "LoRA weights go to --lora" in refused(tmp_path / "lora.safetensors", config)
    message = refused(file, folders("flux-schnell"))
    assert "cannot load its" in message
    with pytest.raises(BldError, match=r"for a model in a single file, and .* is none"):
        load(folders("sd1"), config)


# --- which model a file is built like ---

OUT, CROSS = (
    "output_blocks.11.0.skip_connection.weight",
    "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight",
)
DIFFUSION = "model.diffusion_model."
LIKE: dict[str, dict[str, tuple[int, ...]]] = {  # tensors of the real files, and their shapes
    "sd15": {f"{DIFFUSION}{OUT}": (320, 640, 1, 1), f"{DIFFUSION}{CROSS}": (320, 768)},
    "sdxl": {f"{DIFFUSION}label_emb.0.0.weight": (1280, 2816),
             "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,)},
    "ldm": {f"{DIFFUSION}{OUT}": (320, 640, 1, 1),
            "cond_stage_model.transformer.token_emb.weight": (30522, 1280)},
    "say --config": {f"{DIFFUSION}{CROSS}": (320, 1024)},
    "predicts v: add --config": {
        f"{DIFFUSION}label_emb.0.0.weight": (1280, 2816), "v_pred": (0,), "ztsnr": (0,),
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
    },
    "looks like an EDM model": {
        f"{DIFFUSION}label_emb.0.0.weight": (1280, 2816), "edm_vpred.sigma_max": (1,),
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
    },
    "inpainting": {f"{DIFFUSION}input_blocks.0.0.weight": (320, 9, 3, 3)},
    "looks like flux-schnell": {f"{DIFFUSION}double_blocks.0.img_attn.norm.key_norm.scale": (128,)},
}  # fmt: skip


@pytest.mark.parametrize("like", LIKE)
def test_a_file_tells_what_it_is_built_like(
    like: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = {name: torch.empty(shape, device="meta") for name, shape in LIKE[like].items()}
    monkeypatch.setattr("bld.models.single.read_tensors", lambda *_, **__: weights)
    (tmp_path / "a.safetensors").write_bytes(b"")
    single = SingleFile(tmp_path / "a.safetensors", torch.float32, torch.device("cpu"))
    if like in ("sd15", "sdxl", "ldm"):
        assert single.config == like
    else:
        with pytest.raises(BldError) as caught:
            single.config  # noqa: B018
        assert (like if like != "say --config" else "--config sd21 or --config sd21-base") in str(
            caught.value
        )


def test_what_a_file_lacks_is_named_with_the_command_that_fetches_it(
    singles: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BldError) as caught:
        load(singles("sd1")[0])
    id = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert f"not in the cache ({tmp_path})" in str(caught.value)
    assert f"bld models fetch {id} --config-only" in str(caught.value)
