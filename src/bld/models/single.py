"""A model in one file, in the layout of its authors' own training code, as Stable Diffusion is passed on.

Such a file has weights alone. How the networks are built, the schedule and the tokenizer's words are read
from a diffusers folder, whose own weights are not needed; diffusers' tables say which tensor goes where.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bld.errors import InvalidInput, ModelUnavailable
from bld.models.memory import check_memory
from bld.models.networks import filled_network, loading
from bld.models.weights import read_tensors, sampled

Weights = Mapping[str, torch.Tensor]

UNET, BERT = "model.diffusion_model.", "cond_stage_model.transformer."
OPEN_CLIP = {"text_encoder": "cond_stage_model.model.", "text_encoder_2": "conditioner.embedders.1.model."}
BERT_LAYER = {  # of each layer's two blocks
    "0.0.": "self_attn_layer_norm.", "0.1.to_q.": "self_attn.q_proj.", "0.1.to_k.": "self_attn.k_proj.",
    "0.1.to_v.": "self_attn.v_proj.", "0.1.to_out.": "self_attn.out_proj.", "1.0.": "final_layer_norm.",
    "1.1.net.0.0.": "fc1.", "1.1.net.2.": "fc2.",
}  # fmt: skip
BERT_ENDS = {
    "token_emb.": "model.embed_tokens.", "pos_emb.emb.": "model.embed_positions.",
    "norm.": "model.layer_norm.", "to_logits.": "to_logits.",
}  # fmt: skip


class SingleFile:
    """The weights of all parts of a model, read once."""

    def __init__(
        self, file: Path, dtype: torch.dtype, device: torch.device, *, pickles: bool = False
    ) -> None:
        """dtype, device: where the model will be, for an estimate of the memory it takes.

        Raises ModelUnavailable for a file that is not whole, no such model, or a pickle without leave.
        """
        check_memory(file, [file], dtype, device)
        self.file, self.revision = file, sampled(file.parent, [file])
        self.weights = read_tensors(file, pickles=pickles)
        if not any(name.startswith(UNET) for name in self.weights):
            raise ModelUnavailable(
                f"{file}: no {UNET}* among its tensors, so not a model in a single file; LoRA weights go to "
                "--lora, an autoencoder to --vae, and a diffusers model is given by its folder"
            )

    @cached_property
    def config(self) -> str:
        """The alias of the model that the file's is built like. Raises if it cannot be told."""
        from diffusers.loaders.single_file_utils import infer_diffusers_model_type

        kind = (
            "ldm" if f"{BERT}token_emb.weight" in self.weights else infer_diffusers_model_type(self.weights)
        )
        if kind == "v2":
            raise InvalidInput(
                f"{self.file}: a Stable Diffusion 2, which does not say if it was made for 768 px or 512 px: "
                "add --config sd21 or --config sd21-base"
            )
        if "inpaint" in kind:
            raise ModelUnavailable(
                f"{self.file}: an inpainting model, which is not for blending; use the text-to-image model "
                "it was made from"
            )
        if any(name.startswith("edm_") for name in self.weights):
            kind = "an EDM model, trained on other noise than DDPM's"
        elif "v_pred" in self.weights:  # a mark of its authors'
            raise InvalidInput(
                f"{self.file}: says that it predicts v: add --config with a diffusers folder or a hub id of "
                "a model of its kind that does so, such as the repository that it comes from"
            )
        alias = {"ldm": "ldm", "v1": "sd15", "xl_base": "sdxl"}.get(kind)
        if alias is None:
            raise ModelUnavailable(
                f"{self.file}: looks like {kind}; a single file may be Stable Diffusion 1, 2 or XL, or "
                "latent diffusion; give the folder of the diffusers model, or say what it is like by --config"
            )
        return alias

    def network(self, folder: Path, part: str, kind: Any, dtype: torch.dtype) -> Any:
        """A part of the model. folder: of the configuration."""
        with loading(self.file, part):
            said = kind.load_config if hasattr(kind, "load_config") else kind.config_class.from_pretrained
            config = said(folder / part)
            return filled_network(kind, config, converted(part, self.weights, config), dtype)


def converted(part: str, weights: Weights, config: Any) -> dict[str, torch.Tensor]:
    """The tensors of a part by the names that diffusers and transformers give them."""
    from diffusers.loaders import single_file_utils as theirs

    tensors: dict[str, torch.Tensor]
    if part == "unet":
        tensors = theirs.convert_ldm_unet_checkpoint(weights, config)
    elif part in ("vae", "vqvae"):
        tensors = theirs.convert_ldm_vae_checkpoint(weights, config)
    elif part == "bert":
        tensors = bert(weights)
    elif part not in OPEN_CLIP:
        raise ValueError("it is not read from a single file; give the folder of the diffusers model")
    elif f"{OPEN_CLIP[part]}token_embedding.weight" in weights:
        sized = SimpleNamespace(config=config)  # it asks a model for its width alone
        tensors = theirs.convert_open_clip_checkpoint(sized, weights, prefix=OPEN_CLIP[part])
    else:
        tensors = theirs.convert_ldm_clip_checkpoint(weights)
    return tensors


def bert(weights: Weights) -> dict[str, torch.Tensor]:
    """The text transformer of latent diffusion: each of its layers is two blocks, attention and the rest."""
    tensors = {}
    for name, tensor in weights.items():
        place = name.removeprefix(BERT)
        table, above = BERT_ENDS, ""
        if place.startswith("attn_layers.layers."):
            number, _, place = place.removeprefix("attn_layers.layers.").partition(".")
            layer, block = divmod(int(number), 2)
            table, above, place = BERT_LAYER, f"model.layers.{layer}.", f"{block}.{place}"
        for theirs, ours in table.items():
            if name.startswith(BERT) and place.startswith(theirs):
                tensors[above + ours + place.removeprefix(theirs)] = tensor
    return tensors
