"""The baselines' networks: the layouts of the published weights, and what they compute beside others'."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel, VQModel
from safetensors.torch import save_file
from torch import nn

from bld.baselines import glide, paint_by_word, pixels
from bld.baselines.diffusion import (
    cosine_alpha_bar,
    even,
    fast27,
    ladder,
    linear_alpha_bar,
    posterior,
    predicted,
)
from bld.baselines.unet import Attention, Shape, Text, TextBlock, UNet
from bld.errors import ModelUnavailable
from bld.models.weights import read_tensors
from tests.original import ATTENTION, RESNET, UNET_ENDS, original_vae, renamed

TEXT = Text(vocabulary=9, tokens=5, width=16, layers=2, heads=2)
SMALL = Shape(side=16, channels=16, multiples=(1, 2), blocks=1, attention=(8,), head=16, groups=8)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with random weights everywhere, also where it begins with none."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return module.eval()


# --- the layouts ---

# Names and shapes as they stand in the released state dicts; the parameters are those of the models' cards.
PUBLISHED = [
    (
        pixels.RELEASED,
        552.8,
        {
            "input_blocks.0.0.weight": (256, 3, 3, 3),
            "time_embed.0.weight": (1024, 256),
            "input_blocks.3.0.in_layers.2.weight": (256, 256, 3, 3),  # goes down
            "input_blocks.10.1.qkv.weight": (1536, 512, 1),  # at 32 px
            "middle_block.1.proj_out.weight": (1024, 1024, 1),
            "output_blocks.2.2.out_layers.3.weight": (1024, 1024, 3, 3),  # goes up
            "output_blocks.17.0.skip_connection.weight": (256, 512, 1, 1),
            "out.2.weight": (6, 256, 3, 3),
        },
    ),
    (
        glide.RELEASED["base"],
        385.0,
        {
            "input_blocks.0.0.weight": (192, 7, 3, 3),
            "transformer.resblocks.15.attn.c_qkv.weight": (1536, 512),
            "transformer.resblocks.0.mlp.c_fc.weight": (2048, 512),
            "transformer_proj.weight": (768, 512),
            "padding_embedding": (128, 512),
            "token_embedding.weight": (50257, 512),
            "middle_block.1.encoder_kv.weight": (1536, 512, 1),
            "final_ln.weight": (512,),
        },
    ),
    (
        glide.RELEASED["upsampler"],
        398.4,
        {"input_blocks.0.0.weight": (192, 10, 3, 3), "out.2.weight": (6, 192, 3, 3)},
    ),
]


@pytest.mark.parametrize(("shape", "millions", "some"), PUBLISHED)
def test_published_layouts(shape: Shape, millions: float, some: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        found = UNet(shape).state_dict()
    assert {name: tuple(found[name].shape) for name in some} == some
    assert round(sum(tensor.numel() for tensor in found.values()) / 1e6, 1) == millions


def test_weights_come_back_as_they_were_written(tmp_path: Path) -> None:
    unet = filled(UNet(Shape(**{**vars(SMALL), "patch": 2, "text": TEXT})))
    unet.save_pretrained(tmp_path)
    again = UNet.from_pretrained(tmp_path)
    assert again.shape == unet.shape
    x, t, words = torch.randn(2, 3, 16, 16), torch.tensor([3, 900]), torch.tensor([[1, 2, 3, 0, 0]] * 2)
    with torch.no_grad():
        text = unet.read(words, words > 0)
        assert torch.equal(again(x, t, again.read(words, words > 0)), unet(x, t, text))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    weights = UNet(SMALL).state_dict()
    for damaged, says in (
        ({k: v for k, v in weights.items() if k != "out.2.bias"}, "out.2.bias"),
        ({**weights, "label_emb.weight": torch.zeros(2)}, "label_emb.weight"),
        ({**weights, "out.2.bias": torch.zeros(3)}, "out.2.bias"),
    ):
        with pytest.raises(ValueError, match=says):
            UNet.filled(SMALL, damaged)
    UNet(SMALL).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match="cannot load its network"):
        UNet.from_pretrained(tmp_path)


def test_checkpoints_are_read_with_care(tmp_path: Path) -> None:
    weights = {"a": torch.arange(3.0)}
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "a.pt")
    save_file(weights, tmp_path / "a.safetensors")
    assert torch.equal(read_tensors(tmp_path / "a.safetensors", pickles=False)["a"], weights["a"])
    assert torch.equal(read_tensors(tmp_path / "a.pt", pickles=True)["a"], weights["a"])
    torch.save([1, 2], tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"<html>not found</html>")
    for name, pickles, says in (
        ("a.pt", False, "--allow-pickle"),
        ("b.pt", True, "tensors by their names"),
        ("c.pt", True, "cannot read it"),
        ("d.pt", True, "no such file"),
    ):
        with pytest.raises(ModelUnavailable, match=says):
            read_tensors(tmp_path / name, pickles=pickles)


# --- what they compute ---


def original_unet2d(model: UNet2DModel, head: int) -> dict[str, torch.Tensor]:
    """The tensors of a UNet2DModel, one block a level, under guided-diffusion's names."""
    found: dict[str, torch.Tensor] = {}
    three: dict[str, list[torch.Tensor]] = {}  # queries, keys and values, which are one tensor there
    for name, tensor in model.state_dict().items():
        match = re.match(r"(down|up|mid)_blocks?\.(?:(\d)\.)?(\w+)\.(\d)\.(.*)", name)
        if not match:
            found[renamed(name, UNET_ENDS)] = tensor
            continue
        way, level, kind, number, rest = match.groups()
        attends = kind == "attentions"
        if way == "mid":
            at = f"middle_block.{1 if attends else 2 * int(number)}."
        elif way == "down":
            at = f"input_blocks.{2 * int(level) + 1 + (kind == 'downsamplers')}.{int(attends)}."
        elif kind == "upsamplers":
            at = f"output_blocks.{2 * int(level) + 1}.2."  # after a residual block and its attention
        else:
            at = f"output_blocks.{2 * int(level) + int(number)}.{int(attends)}."
        if not attends:
            found[at + renamed(rest, RESNET)] = tensor
        elif rest.startswith(("to_q", "to_k", "to_v")):
            three.setdefault(f"{at}qkv.{rest[5:]}", []).append(tensor)
        else:
            found[at + renamed(rest, ATTENTION)] = tensor[..., None] if tensor.ndim == 2 else tensor
    for name, parts in three.items():  # head by head
        joined = torch.stack([part.unflatten(0, (-1, head)) for part in parts], 1).flatten(0, 2)
        found[name] = joined[..., None] if joined.ndim == 2 else joined
    return found


def test_the_unet_computes_what_diffusers_does() -> None:
    """The same weights in UNet2DModel: sums in another order, hence the tolerance."""
    theirs = filled(
        UNet2DModel(
            sample_size=16, in_channels=3, out_channels=6, layers_per_block=1, block_out_channels=(16, 32),
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), attention_head_dim=16,
            norm_num_groups=8, attn_norm_num_groups=8, downsample_type="resnet", upsample_type="resnet",
            resnet_time_scale_shift="scale_shift", freq_shift=0,
        )
    )  # fmt: skip
    ours = UNet.filled(SMALL, original_unet2d(theirs, 16))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([7, 900])
    with torch.no_grad():
        expected = theirs(x, t).sample
        torch.testing.assert_close(ours(x, t), expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1


def test_the_text_transformer_is_a_pre_norm_one() -> None:
    """Beside torch's own encoder layer, whose queries, keys and values lie head after head."""
    ours = filled(TextBlock(16, 2))
    theirs = nn.TransformerEncoderLayer(16, 2, 64, 0, "gelu", norm_first=True, batch_first=True).eval()
    weights = ours.state_dict()

    def regrouped(x: torch.Tensor) -> torch.Tensor:
        return x.view(2, 3, 8, -1).transpose(0, 1).reshape(x.shape)

    theirs.load_state_dict({
        "self_attn.in_proj_weight": regrouped(weights["attn.c_qkv.weight"]),
        "self_attn.in_proj_bias": regrouped(weights["attn.c_qkv.bias"]),
        **{f"self_attn.out_proj.{k}": weights[f"attn.c_proj.{k}"] for k in ("weight", "bias")},
        **{f"linear1.{k}": weights[f"mlp.c_fc.{k}"] for k in ("weight", "bias")},
        **{f"linear2.{k}": weights[f"mlp.c_proj.{k}"] for k in ("weight", "bias")},
        **{f"norm{i}.{k}": weights[f"ln_{i}.{k}"] for i in (1, 2) for k in ("weight", "bias")},
    })  # fmt: skip
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_attention_reads_the_text_beside_its_own_places() -> None:
    layer = filled(Attention(Shape(**{**vars(SMALL), "text": TEXT}), 32))
    x, text = torch.randn(1, 32, 2, 2), torch.randn(1, 16, 5)
    with torch.no_grad():
        own = layer.qkv(F.group_norm(x, 8, layer.norm.weight, layer.norm.bias).flatten(2))[0]
        read, heads = layer.encoder_kv(text)[0], []
        for number in range(2):  # 16 channels each
            q, k, v = own[48 * number : 48 * number + 48].chunk(3)
            text_k, text_v = read[32 * number : 32 * number + 32].chunk(2)
            weight = (q.T @ torch.cat([text_k, k], 1) / math.sqrt(16)).softmax(1)
            heads.append(torch.cat([text_v, v], 1) @ weight.T)
        expected = x + layer.proj_out(torch.cat(heads)[None]).view(x.shape)
        torch.testing.assert_close(layer(x, torch.zeros(1), text), expected, atol=1e-5, rtol=1e-4)


def test_padding_is_not_read() -> None:
    unet = filled(UNet(Shape(**{**vars(SMALL), "text": TEXT})))
    first, second = torch.tensor([[1, 2, 0, 0, 0]]), torch.tensor([[1, 2, 7, 8, 3]])
    there = torch.tensor([[True, True, False, False, False]])
    assert torch.equal(unet.read(first, there), unet.read(second, there))
    assert not torch.equal(unet.read(first, there), unet.read(second, ~there))


def test_a_taming_checkpoint_gives_the_pictures_of_its_vqmodel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        **paint_by_word.RELEASED, "block_out_channels": (32, 32, 64), "sample_size": 32, "latent_channels": 8,
        "vq_embed_dim": 8, "num_vq_embeddings": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
        "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    theirs = filled(VQModel(**config))
    weights = {}
    for name, tensor in original_vae(theirs.state_dict(), levels=3).items():
        side, dot, rest = name.partition(".attentions.")
        if dot:  # of a level: the middle's are done
            number, part, kind = rest.replace("to_out.0", "proj_out").replace("group_norm", "norm").split(".")
            side = side.replace("down_blocks", "down").replace("up_blocks.0", "up.2")
            name = f"{side}.attn.{number}.{part.removeprefix('to_')}.{kind}"
            tensor = tensor[..., None, None] if tensor.ndim == 2 else tensor
        weights[name] = tensor
    assert {
        "encoder.down.2.attn.1.q.weight",
        "decoder.up.2.attn.0.norm.bias",
        "decoder.mid.attn_1.v.weight",
    } <= set(weights)
    torch.save({"state_dict": {**weights, "loss.logvar": torch.ones(1)}}, tmp_path / "last.ckpt")
    monkeypatch.setattr(paint_by_word, "RELEASED", config)

    class Guide:
        excess = staticmethod(str)

    ours = paint_by_word.PaintByWord.load(tmp_path / "last.ckpt", Guide(), pickles=True)  # type: ignore[arg-type]
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(ours.vqgan(x).sample, theirs(x).sample)
    del weights["quant_conv.bias"]
    torch.save(weights, tmp_path / "short.ckpt")
    with pytest.raises(ModelUnavailable, match=r"lack 1 tensors, such as quant_conv\.bias"):
        paint_by_word.PaintByWord.load(tmp_path / "short.ckpt", Guide(), pickles=True)  # type: ignore[arg-type]


def test_the_published_vqgan_has_its_size() -> None:
    with torch.device("meta"):
        found = VQModel.from_config(paint_by_word.RELEASED)
    assert round(sum(p.numel() for p in found.parameters()) / 1e6, 1) == 76.1


# --- schedules ---


def test_schedules_are_the_published_ones() -> None:
    for ours, name in ((linear_alpha_bar(), "linear"), (cosine_alpha_bar(), "squaredcos_cap_v2")):
        theirs = DDPMScheduler(beta_schedule=name).alphas_cumprod
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-3)
    assert even(100)[:3] == [0, 10, 20]
    assert even(100)[-1] == 999
    assert fast27() == [
        0, 22, 44, 66, 88, 111, 133, 155, 177, 199, 200, 222, 244, 266, 288, 311, 333, 355, 377, 399,
        400, 500, 599, 600, 799, 800, 997,
    ]  # fmt: skip


def test_learned_variances_are_diffusers() -> None:
    """A step of what a published network says, beside DDPMScheduler's, given the same noise."""
    scheduler = DDPMScheduler(beta_schedule="linear", variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(timesteps=[600, 400, 200, 0])
    output, x_t = torch.randn(2, 6, 4, 4), torch.randn(2, 3, 4, 4)
    level = ladder(linear_alpha_bar(), [0, 200, 400, 600])[0]
    eps, share = predicted(output, x_t, level.alpha_bar)
    x_0 = (x_t - (1 - level.alpha_bar) ** 0.5 * eps) / level.alpha_bar**0.5
    mean, variance = posterior(x_t, x_0, level, share)
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(3))
    theirs = scheduler.step(output, 600, x_t, generator=torch.Generator().manual_seed(3)).prev_sample
    torch.testing.assert_close(mean + variance**0.5 * noise, theirs, atol=1e-4, rtol=1e-4)


def test_small_networks_predict_the_picture() -> None:
    x, eps, a = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4), 0.3
    x_t = a**0.5 * x + (1 - a) ** 0.5 * eps
    for output, guess in ((x, 0.0), (x - 2, 2.0)):
        found, share = predicted(output, x_t, a, guess)
        torch.testing.assert_close(found, eps, atol=1e-5, rtol=1e-4)
        assert share is None
