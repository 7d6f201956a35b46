"""A tiny checkpoint of every family: the real layout, classes and configurations, random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.tiny import CAPTIONS, SD1_SCHEDULER

SIDE = 64  # px
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": SIDE,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
UNET: dict[str, Any] = {
    "sample_size": SIDE // 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 2,
}  # fmt: skip
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
SHIFTING = {
    **FLOW, "use_dynamic_shifting": True, "base_image_seq_len": 256, "max_image_seq_len": 4096,
    "base_shift": 0.5, "max_shift": 1.15,
}  # fmt: skip
CHAT = (  # as Qwen's, without tools and systems
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


# --- what reads prompts ---


def clip_tokenizer(folder: Path) -> Any:
    from bld.training import tokenizer

    return tokenizer.train(list(CAPTIONS), 640, 77, folder)


def t5_tokenizer(folder: Path) -> Any:
    from transformers import T5TokenizerFast

    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    letters = [f"{mark}{letter}" for mark in ("▁", "") for letter in "abcdefghijklmnopqrstuvwxyz"]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -4.0)]
    scores += [(f"▁{word}", -2.0) for word in words if len(word) > 1] + [(piece, -6.0) for piece in letters]
    made = T5TokenizerFast(vocab=scores, extra_ids=0, model_max_length=512)
    made.save_pretrained(folder)
    return made


def chat_tokenizer(folder: Path) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import Qwen2TokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Qwen2TokenizerFast(vocab={s: i for i, s in enumerate([*symbols, "<|endoftext|>"])}, merges=[])
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHAT
    made.save_pretrained(folder)
    return made


def bert_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    pieces = [f"{mark}{letter}" for mark in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"]
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *pieces]
    made = BertTokenizer(
        vocab={word: i for i, word in enumerate(dict.fromkeys(entries))}, model_max_length=512
    )
    made.save_pretrained(folder)
    return made


def clip_text(folder: Path, words: Any, *, projected: bool = False) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        **SIZES, vocab_size=len(words), max_position_embeddings=77, projection_dim=32,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).save_pretrained(folder)


def t5_text(folder: Path, words: Any, width: int) -> None:
    from transformers import T5Config, T5EncoderModel

    T5EncoderModel(
        T5Config(vocab_size=len(words), d_model=width, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    ).save_pretrained(folder)


def qwen_text(folder: Path, words: Any, kind: str, layers: int) -> None:
    import transformers

    config = transformers.Qwen3Config(
        **{**SIZES, "num_hidden_layers": layers}, vocab_size=len(words), num_key_value_heads=2, head_dim=16
    )
    getattr(transformers, kind)(config).save_pretrained(folder)


# --- folders ---


def index(folder: Path, pipeline: str, **facts: Any) -> Path:
    """Write model_index.json from what lies in the folder."""
    parts = {}
    for part in sorted(p for p in folder.iterdir() if p.is_dir()):
        for name in ("config.json", "scheduler_config.json", "tokenizer_config.json"):
            if (part / name).is_file():
                said = json.loads((part / name).read_text())
                kind = said.get("_class_name") or (said.get("architectures") or [None])[0]
                library = "diffusers" if "_class_name" in said else "transformers"
                if kind == "LDMBertModel":
                    library = "latent_diffusion"
                parts[part.name] = [library, kind or said["tokenizer_class"]]
    content = {"_class_name": pipeline, "_diffusers_version": "0.42.1", **facts, **parts}
    (folder / "model_index.json").write_text(json.dumps(content))
    return folder


def scheduler(folder: Path, facts: dict[str, Any]) -> None:
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(facts))


def stable_diffusion(folder: Path, facts: dict[str, Any], *, told: int | None = None) -> Path:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    AutoencoderKL(**VAE, latent_channels=4).save_pretrained(folder / "vae")
    words = clip_tokenizer(folder / "tokenizer")
    clip_text(folder / "text_encoder", words)
    UNet2DConditionModel(**UNET, cross_attention_dim=32, time_cond_proj_dim=told).save_pretrained(
        folder / "unet"
    )
    scheduler(folder, facts)
    return index(folder, "StableDiffusionPipeline", safety_checker=[None, None])


def ldm(folder: Path) -> Path:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    AutoencoderKL(**VAE, latent_channels=4).save_pretrained(folder / "vqvae")
    words = bert_tokenizer(folder / "tokenizer")
    LDMBertModel(
        LDMBertConfig(
            vocab_size=len(words), encoder_layers=2, encoder_ffn_dim=64, encoder_attention_heads=2,
            head_dim=16, d_model=32,
        )
    ).save_pretrained(folder / "bert")  # fmt: skip
    UNet2DConditionModel(**UNET, cross_attention_dim=32).save_pretrained(folder / "unet")
    scheduler(folder, LDM)
    return index(folder, "LDMTextToImagePipeline")


def sdxl(folder: Path, facts: dict[str, Any]) -> Path:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    AutoencoderKL(**VAE, latent_channels=4, scaling_factor=0.13025, force_upcast=True).save_pretrained(
        folder / "vae"
    )
    for suffix, projected in (("", False), ("_2", True)):
        words = clip_tokenizer(folder / f"tokenizer{suffix}")
        clip_text(folder / f"text_encoder{suffix}", words, projected=projected)
    UNet2DConditionModel(
        **UNET, cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    ).save_pretrained(folder / "unet")  # fmt: skip
    scheduler(folder, facts)
    return index(folder, "StableDiffusionXLPipeline", force_zeros_for_empty_prompt=True)


def sd3(folder: Path, *, t5: bool = True, places: int = 16) -> Path:
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    AutoencoderKL(
        **VAE, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")  # fmt: skip
    for suffix in ("", "_2"):
        clip_text(
            folder / f"text_encoder{suffix}", clip_tokenizer(folder / f"tokenizer{suffix}"), projected=True
        )
    if t5:
        t5_text(folder / "text_encoder_3", t5_tokenizer(folder / "tokenizer_3"), 64)
    SD3Transformer2DModel(
        sample_size=SIDE // 8, num_layers=2, attention_head_dim=16, num_attention_heads=2, in_channels=16,
        joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64,
        pos_embed_max_size=places, dual_attention_layers=(0,), qk_norm="rms_norm",
    ).save_pretrained(folder / "transformer")  # fmt: skip
    scheduler(folder, FLOW)
    missing = {} if t5 else {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    return index(folder, "StableDiffusion3Pipeline", **missing)


def flux(folder: Path, *, dev: bool) -> Path:
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    AutoencoderKL(
        **VAE, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")  # fmt: skip
    clip_text(folder / "text_encoder", clip_tokenizer(folder / "tokenizer"))
    t5_text(folder / "text_encoder_2", t5_tokenizer(folder / "tokenizer_2"), 32)
    FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=dev, axes_dims_rope=(4, 6, 6),
    ).save_pretrained(folder / "transformer")  # fmt: skip
    scheduler(folder, SHIFTING if dev else {**FLOW, "shift": 1.0})
    return index(folder, "FluxPipeline")


def flux2_klein(folder: Path, *, distilled: bool = True) -> Path:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    vae = AutoencoderKLFlux2(**VAE, latent_channels=8)
    with torch.no_grad():  # statistics that would show if they were left out
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2)
    vae.save_pretrained(folder / "vae")
    qwen_text(folder / "text_encoder", chat_tokenizer(folder / "tokenizer"), "Qwen3ForCausalLM", 28)
    Flux2Transformer2DModel(
        in_channels=32, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=96, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    scheduler(folder, SHIFTING)
    return index(folder, "Flux2KleinPipeline", is_distilled=distilled)


def z_image(folder: Path) -> Path:
    from diffusers import AutoencoderKL, ZImageTransformer2DModel

    AutoencoderKL(
        **VAE, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")  # fmt: skip
    qwen_text(folder / "text_encoder", chat_tokenizer(folder / "tokenizer"), "Qwen3Model", 3)
    ZImageTransformer2DModel(
        dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32, axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    ).save_pretrained(folder / "transformer")  # fmt: skip
    scheduler(folder, FLOW)
    return index(folder, "ZImagePipeline")


LDM = {
    "_class_name": "DDIMScheduler", "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
}  # fmt: skip
SD2_V = {**SD1_SCHEDULER, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
LCM = {
    "_class_name": "LCMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "original_inference_steps": 50, "set_alpha_to_one": True,
    "clip_sample": False,
    "prediction_type": "epsilon", "timestep_scaling": 10.0, "steps_offset": 1,
}  # fmt: skip
SDXL = {**SD1_SCHEDULER, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
TURBO = {**SDXL, "_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}

CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "sd1": lambda folder: stable_diffusion(folder, SD1_SCHEDULER),
    "sd2-v": lambda folder: stable_diffusion(folder, SD2_V),
    "lcm": lambda folder: stable_diffusion(folder, LCM, told=16),
    "lcm-plain": lambda folder: stable_diffusion(folder, LCM),
    "ldm": ldm,
    "sdxl": lambda folder: sdxl(folder, SDXL),
    "sdxl-turbo": lambda folder: sdxl(folder, TURBO),
    "sd3": sd3,
    "sd3-without-t5": lambda folder: sd3(folder, t5=False),
    "flux-dev": lambda folder: flux(folder, dev=True),
    "flux-schnell": lambda folder: flux(folder, dev=False),
    "flux2-klein": flux2_klein,
    "flux2-klein-base": lambda folder: flux2_klein(folder, distilled=False),
    "z-image": z_image,
}


def checkpoint(name: str, folder: Path) -> Path:
    """Write the tiny checkpoint of a name; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CHECKPOINTS[name](folder)
