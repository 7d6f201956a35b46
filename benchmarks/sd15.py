"""A checkpoint of Stable Diffusion 1.5's size with random weights, to measure what its arithmetic costs.

    python benchmarks/sd15.py runs/sd15
    bld bench --model runs/sd15 --cases 0 --candidates 2 --steps 4 --no-reconstruct --output runs/bench-sd15

Its pictures are noise, and it has neither a ranker nor a judge. Weights are written in bfloat16, 2.1 GB.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import bld

UNET = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
    "attention_head_dim": 8, "layers_per_block": 2,
}  # fmt: skip
VAE = {
    "sample_size": 512, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TEXT = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77,
}  # fmt: skip


def main() -> None:
    """Draw the weights and write the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    index = {
        "vae": AutoencoderKL(**VAE),
        "unet": UNet2DConditionModel(**UNET),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
        # The bundled model's words: how long a prompt is padded to is what costs time, not its words.
        "tokenizer": CLIPTokenizer.from_pretrained(
            Path(bld.__file__).parent / "models/mini/tokenizer", model_max_length=77
        ),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1,
        ),
    }  # fmt: skip
    for name, part in index.items():
        part.save_pretrained(folder / name)
    parts = {
        name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in index.items()
    }
    text = json.dumps({"_class_name": "StableDiffusionPipeline", **parts}, indent=1)
    (folder / "model_index.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
