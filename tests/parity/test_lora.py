"""LoRA weights in the families beside Stable Diffusion: W + scale * B A in every layer that they name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bld.errors import InvalidInput
from bld.models.load import load_model

NETWORKS = {
    "sdxl": "unet", "sd3": "transformer", "flux-dev": "transformer", "flux2-klein": "transformer",
    "z-image": "transformer",
}  # fmt: skip


def load(folder: Path, *lora: str) -> Any:
    return load_model(str(folder), device="cpu", lora=lora)


def written(model: Any, part: str, file: Path) -> dict[str, torch.Tensor]:
    """Save LoRA weights of rank 2 for the attention of a part, by the names that diffusers saves them by."""
    draws, weights = torch.Generator().manual_seed(0), {}
    for name, layer in getattr(model, part).named_modules():
        if name.endswith(("to_q", "to_v")):
            rows, columns = layer.weight.shape
            weights[f"{part}.{name}.lora_A.weight"] = torch.randn(2, columns, generator=draws)
            weights[f"{part}.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=draws)
    save_file(weights, file)
    return weights


@pytest.mark.parametrize("name", NETWORKS)
def test_lora_weights_are_added_to_the_models_own(
    name: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    file, part = tmp_path / "style.safetensors", NETWORKS[name]
    plain = load(checkpoints(name))
    lora = written(plain, part, file)
    changed = load(checkpoints(name), f"{file}:0.7")
    found = getattr(changed, part).state_dict()
    assert len(lora) >= 4
    for key, weight in getattr(plain, part).state_dict().items():
        layer = f"{part}.{key.removesuffix('.weight')}"
        if f"{layer}.lora_A.weight" in lora:
            added = 0.7 * lora[f"{layer}.lora_B.weight"] @ lora[f"{layer}.lora_A.weight"]
            torch.testing.assert_close(found[key], weight + added, atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(found[key], weight), key
    assert changed.revision != plain.revision


@pytest.mark.parametrize("name", [*NETWORKS, "ldm"])
def test_lora_weights_of_another_family_are_refused_in_one_line(
    name: str, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    other = "flux-dev" if name == "sdxl" else "sdxl"
    file = tmp_path / "style.safetensors"
    written(load(checkpoints(other)), NETWORKS[other], file)
    with pytest.raises(InvalidInput, match=r"does not fit|takes no LoRA weights") as caught:
        load(checkpoints(name), str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lora_weights_for_layers_that_are_not_there_are_refused(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    written(load(checkpoints("flux-dev")), "transformer", file)
    weights = load_file(file)
    deeper = {key.replace("blocks.0.", "blocks.1."): tensor.clone() for key, tensor in weights.items()}
    save_file({**weights, **deeper}, file)
    with pytest.raises(InvalidInput, match=r"does not fit .* \(4 of its 8 layers are none of this model's\)"):
        load(checkpoints("flux-dev"), str(file))
