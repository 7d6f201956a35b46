"""Untrained baselines, tiny but whole, in the folders that trained ones lie in."""

from pathlib import Path

import torch
from diffusers import VQModel
from torch import nn

from bld.baselines.glide import BASE, TOKENIZER, UPSAMPLER
from bld.baselines.unet import Shape, Text, UNet
from bld.training import tokenizer
from tests.tiny import CAPTIONS, tiny_clip

SIDE = 32
PIXELS = Shape(
    side=SIDE, channels=8, multiples=(1, 2), blocks=1, attention=(8,), outputs=3, head=8, groups=4, patch=2
)
VQGAN = {
    "block_out_channels": (8, 8, 16), "layers_per_block": 1, "sample_size": SIDE, "latent_channels": 4,
    "num_vq_embeddings": 32, "norm_num_groups": 4, "mid_block_add_attention": False,
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
}  # fmt: skip


def filled(module: nn.Module, spread: float = 0.1) -> nn.Module:
    """The module with random weights everywhere, also where it begins with none."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
    return module.eval()


def tiny_baselines(folder: Path) -> Path:
    """Write pixels, vqgan, glide and the CLIP that guides into a folder, and return it."""
    filled(UNet(PIXELS), 0.3).save_pretrained(folder / "pixels")
    filled(VQModel(**VQGAN), 0.2).save_pretrained(folder / "vqgan")
    words = tokenizer.train(list(CAPTIONS), 640, 12, folder / "glide" / TOKENIZER)
    text = Text(vocabulary=len(words), tokens=12, width=16, layers=1, heads=2)
    small = {**vars(PIXELS), "text": text}
    filled(UNet(Shape(**{**small, "side": SIDE // 2, "inputs": 7})), 0.3).save_pretrained(
        folder / "glide" / BASE
    )
    filled(UNet(Shape(**{**small, "inputs": 10})), 0.3).save_pretrained(folder / "glide" / UPSAMPLER)
    tiny_clip(folder / "clip")
    return folder
