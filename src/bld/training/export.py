"""From a training run to the bundled model: a stock diffusers folder in float16."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bld.baselines.glide import BASE, TOKENIZER, UPSAMPLER
from bld.errors import InvalidInput
from bld.training.loop import whole

CLASSES = {
    "vae": ("diffusers", "AutoencoderKL"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}

BASELINES = ("pixels", "vqgan", f"glide/{TOKENIZER}", f"glide/{BASE}", f"glide/{UPSAMPLER}")
BESIDE = ("ranker", "judge")  # not parts of the pipeline


def export(run: Path, target: Path, *, guidance_scale: float, steps: int) -> None:
    """Write the parts in `run` as one model folder that StableDiffusionPipeline loads.

    The folder appears whole or not at all. Raises InvalidInput if a part has not been trained yet.
    """
    sources = {part: run / ("autoencoder" if part == "vae" else part) for part in CLASSES}
    missing = [source.name for source in sources.values() if not source.is_dir()]
    if missing:
        raise InvalidInput(f"{run} has no {', '.join(missing)} yet: train it first")
    with whole(target) as fresh:
        for part in CLASSES:
            shutil.copytree(sources[part], fresh / part)
            _forget_origin(fresh / part / "config.json")
            for weights in (fresh / part).glob("*.safetensors"):
                _halve(weights, prefix="text_model." if part == "text_encoder" else "")
        _state_dtype(fresh / "text_encoder" / "config.json")
        index: dict[str, Any] = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            "_bld_guidance_scale": guidance_scale,
            "_bld_steps": steps,
            "_bld_whole": False,  # it learnt things in the middle of a picture, where a crop has its mask
            **{part: list(names) for part, names in CLASSES.items()},
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
        }
        (fresh / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for part in BESIDE:
            if (run / part).is_dir():
                shutil.copytree(run / part, fresh / part)
                for weights in (fresh / part).glob("*.safetensors"):
                    _halve(weights, prefix="")


def export_baselines(run: Path, target: Path) -> None:
    """Write the baselines' parts in `run` as the folder that `bld.baselines` reads, in float16.

    The folder appears whole or not at all. Raises InvalidInput if a part has not been trained yet.
    """
    missing = [part for part in BASELINES if not (run / part).is_dir()]
    if missing:
        raise InvalidInput(f"{run} has no {', '.join(missing)} yet: train it first")
    with whole(target) as fresh:
        for part in BASELINES:
            shutil.copytree(run / part, fresh / part)
        for weights in fresh.rglob("*.safetensors"):
            _halve(weights, prefix="")
            _forget_origin(weights.parent / "config.json")


def _halve(weights: Path, *, prefix: str) -> None:
    """Rewrite a safetensors file in float16, with keys under `prefix`.

    transformers 5 leaves "text_model." out of the keys of a CLIP text encoder; with it, version 4
    loads the file too.
    """
    tensors = {
        (key if key.startswith(prefix) else prefix + key): (
            value.to(torch.float16) if value.is_floating_point() else value
        ).contiguous()
        for key, value in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes files that only their owner reads


def _forget_origin(config: Path) -> None:
    """Leave out where the part was loaded from while it was trained: a path of one machine."""
    if config.exists():
        facts = json.loads(config.read_text(encoding="utf-8"))
        facts.pop("_name_or_path", None)
        config.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _state_dtype(config: Path) -> None:
    """Say float32: transformers would otherwise run the file's float16 beside diffusers' float32."""
    facts = json.loads(config.read_text(encoding="utf-8"))
    facts["dtype"] = facts["torch_dtype"] = "float32"
    config.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
