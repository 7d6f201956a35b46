"""Tiny checkpoints in one file, with the tensor names of the authors' own training code.

Names as in CompVis/latent-diffusion (openaimodel.py, model.py, x_transformer.py) and open_clip; what
diffusers calls them is on the left of each pair.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]

RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
UNET_ENDS = (
    ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
)  # fmt: skip
ATTENTION = (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))
OPEN_CLIP = (
    ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
)  # fmt: skip
BERT_LAYER = (
    ("self_attn_layer_norm", "0.0"), ("self_attn.q_proj", "0.1.to_q"), ("self_attn.k_proj", "0.1.to_k"),
    ("self_attn.v_proj", "0.1.to_v"), ("self_attn.out_proj", "0.1.to_out"), ("final_layer_norm", "1.0"),
    ("fc1", "1.1.net.0.0"), ("fc2", "1.1.net.2"),
)  # fmt: skip
BERT_ENDS = (
    ("model.embed_tokens", "token_emb"), ("model.embed_positions", "pos_emb.emb"),
    ("model.layer_norm", "norm"), ("to_logits", "to_logits"),
)  # fmt: skip


def renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """The name with its first word or words changed."""
    for theirs, originals in pairs:
        if name.startswith(theirs + "."):
            return originals + name.removeprefix(theirs)
    raise KeyError(name)


def original_unet(weights: Weights, layers: int = 1) -> Weights:
    """layers: residual blocks per level; on the way up there is one more."""
    found = {}
    for name, tensor in weights.items():
        way, *place = re.match(r"(down|up|mid)?(?:_blocks?\.)?(?:(\d+)\.)?(.*)", name).groups()  # type: ignore[union-attr]
        level, rest = place
        if way is None:
            found[renamed(name, UNET_ENDS)] = tensor
            continue
        kind, number, rest = rest.split(".", 2)
        if way == "mid":
            block = f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}."
            found[block + (rest if kind == "attentions" else renamed(rest, RESNET))] = tensor
            continue
        at = int(level) * (layers + 1) + int(number)
        block = f"input_blocks.{at + 1}." if way == "down" else f"output_blocks.{at}."
        if kind == "resnets":
            found[f"{block}0.{renamed(rest, RESNET)}"] = tensor
        elif kind == "attentions":
            found[f"{block}1.{rest}"] = tensor
        elif kind == "downsamplers":
            found[f"input_blocks.{(int(level) + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"] = (
                tensor
            )
        else:
            attends = any(name.startswith(f"up_blocks.{level}.attentions") for name in weights)
            found[f"output_blocks.{at + layers}.{1 + attends}.{rest}"] = tensor
    return found


def original_vae(weights: Weights, levels: int = 4) -> Weights:
    found = {}
    for name, tensor in weights.items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if "mid_block.attentions.0." in name:
            side, _, rest = name.partition("mid_block.attentions.0.")
            name = f"{side}mid.attn_1.{renamed(rest, ATTENTION)}"
            if tensor.ndim == 2:
                tensor = tensor[..., None, None]  # a convolution of 1 by 1 there
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        for theirs, originals in (("resnets", "block"), ("upsamplers.0", "upsample")):
            pattern = rf"up_blocks\.(\d)\.{re.escape(theirs)}"
            name = re.sub(pattern, lambda m, o=originals: f"up.{levels - 1 - int(m[1])}.{o}", name)
        found[name] = tensor
    return found


def original_open_clip(weights: Weights) -> Weights:
    """Queries, keys and values are one tensor, and the projection lies on its side."""
    found: Weights = {}
    for name, tensor in weights.items():
        name = name.removeprefix("text_model.")
        if name.startswith("encoder.layers."):
            number, rest = name.removeprefix("encoder.layers.").split(".", 1)
            block = f"transformer.resblocks.{number}."
            if re.match(r"self_attn\.[qkv]_proj", rest):
                ending = rest.rpartition(".")[2]
                layer = name.removesuffix(rest)
                (above,) = {key.partition(layer)[0] for key in weights if layer in key}
                three = [weights[f"{above}{layer}self_attn.{x}_proj.{ending}"] for x in "qkv"]
                found[f"{block}attn.in_proj_{ending}"] = torch.cat(three)
            else:
                found[block + renamed(rest, OPEN_CLIP)] = tensor
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        else:
            ends = {
                "embeddings.token_embedding.weight": "token_embedding.weight",
                "embeddings.position_embedding.weight": "positional_embedding",
            }
            found[ends.get(name) or name.replace("final_layer_norm", "ln_final")] = tensor
    return found


def original_bert(weights: Weights) -> Weights:
    found = {}
    for name, tensor in weights.items():
        if name.startswith("model.layers."):
            number, rest = name.removeprefix("model.layers.").split(".", 1)
            block, rest = renamed(rest, BERT_LAYER).split(".", 1)
            found[f"attn_layers.layers.{2 * int(number) + int(block)}.{rest}"] = tensor
        else:
            found[renamed(name, BERT_ENDS)] = tensor
    return found


def single_file(folder: Path, target: Path, *, open_clip: bool = False) -> Path:
    """Write the weights of a diffusers folder (Stable Diffusion, SDXL or latent diffusion) as one file.

    open_clip: whose text encoder it is, as in Stable Diffusion 2.
    """

    def part(name: str) -> Weights:
        (file,) = (folder / name).glob("*.safetensors")
        return load_file(file)

    def under(prefix: str, weights: Weights) -> Weights:
        return {prefix + name: tensor.clone() for name, tensor in weights.items()}

    def clip(name: str) -> Weights:
        return under("text_model.", {k.removeprefix("text_model."): v for k, v in part(name).items()})

    whole = under("model.diffusion_model.", original_unet(part("unet")))
    vae = part("vqvae" if (folder / "vqvae").is_dir() else "vae")
    whole |= under("first_stage_model.", original_vae(vae))
    whole |= {"betas": torch.ones(1000), "model_ema.decay": torch.ones(1)}  # what else is in such files
    if (folder / "bert").is_dir():
        whole |= under("cond_stage_model.transformer.", original_bert(part("bert")))
    elif (folder / "text_encoder_2").is_dir():
        whole |= under("conditioner.embedders.0.transformer.", clip("text_encoder"))
        whole |= under("conditioner.embedders.1.model.", original_open_clip(part("text_encoder_2")))
    elif open_clip:
        whole |= under("cond_stage_model.model.", original_open_clip(part("text_encoder")))
    else:
        whole |= under("cond_stage_model.transformer.", clip("text_encoder"))
    if target.suffix == ".safetensors":
        save_file(whole, target)
    else:
        torch.save({"state_dict": whole, "global_step": 1}, target)
    return target
