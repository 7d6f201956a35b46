"""The UNet of guided-diffusion and of GLIDE, under its tensors' own names, so that their checkpoints load
as they are.

Dhariwal and Nichol 2021 (appendix, "BigGAN up and down blocks", scale-shift norm); Nichol et al. 2022, with a
text transformer whose outputs every attention layer reads beside its own places.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from bld.models.networks import loading

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Text:
    """The text transformer of GLIDE. tokens: what it reads, no more and no fewer."""

    vocabulary: int
    tokens: int
    width: int
    layers: int
    heads: int


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a UNet is built. multiples: of `channels`, level by level. attention: at what sides, in places.

    patch: pixels along a side that are one place to the network; 1 in the published ones.
    """

    side: int
    channels: int
    multiples: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    inputs: int = 3
    outputs: int = 6
    head: int = 64
    groups: int = 32
    patch: int = 1
    text: Text | None = None


class ResBlock(nn.Module):
    """Two convolutions; the timestep scales and shifts between them. way: up, down, or neither."""

    def __init__(self, shape: Shape, width: int, out: int, way: str = "") -> None:
        super().__init__()
        self.way = way
        self.in_layers = nn.Sequential(
            nn.GroupNorm(shape.groups, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * shape.channels, 2 * out))
        last = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(
            nn.GroupNorm(shape.groups, out), nn.SiLU(), nn.Dropout(0.0), _zeroed(last)
        )
        self.skip_connection = nn.Identity() if out == width else nn.Conv2d(width, out, 1)

    def forward(self, x: torch.Tensor, emb: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
        norm, act, convolution = self.in_layers
        h = convolution(_resampled(act(norm(x)), self.way))
        scale, shift = self.emb_layers(emb)[..., None, None].chunk(2, 1)
        norm, *rest = self.out_layers
        h = norm(h) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        y: torch.Tensor = self.skip_connection(_resampled(x, self.way)) + h
        return y


def _resampled(x: torch.Tensor, way: str) -> torch.Tensor:
    if way == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if way == "up" else x


def _zeroed(layer: nn.Conv1d | nn.Conv2d) -> nn.Module:
    """The layer with weights of nothing, so that an untrained block changes nothing."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


class Attention(nn.Module):
    """Every place attends to all places and, where there is a text, to all of its tokens."""

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // shape.head)
        self.norm = nn.GroupNorm(shape.groups, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        if shape.text:
            self.encoder_kv = nn.Conv1d(shape.text.width, 2 * width, 1)
        self.proj_out = _zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: torch.Tensor, emb: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
        q, k, v = self._parted(self.qkv(self.norm(x).flatten(2)), 3)
        if text is not None:
            text_k, text_v = self._parted(self.encoder_kv(text), 2)
            k, v = torch.cat([text_k, k], 2), torch.cat([text_v, v], 2)
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)
        added: torch.Tensor = self.proj_out(h)
        return x + added.view(x.shape)

    def _parted(self, x: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """b (heads parts c) t to so many b heads t c: a head's queries, keys and values lie together."""
        whole = x.view(len(x), self.heads, parts, -1, x.shape[2])
        return tuple(part.transpose(2, 3) for part in whole.unbind(2))


class TextAttention(nn.Module):
    """Self-attention over tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.c_qkv(x).unflatten(2, (self.heads, 3, -1)).unbind(3)  # b t heads c
        q, k, v = (part.transpose(1, 2) for part in parts)
        h: torch.Tensor = self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h


class TextBlock(nn.Module):
    """One layer of the text transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = TextAttention(width, heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        h: torch.Tensor = self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))
        return x + h


class Blocks(nn.Sequential):
    """Layers that are told the timestep and the text, if they take them."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, emb: torch.Tensor, text: torch.Tensor | None
    ) -> torch.Tensor:
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, emb, text)
        return x


class UNet(nn.Module):
    """b inputs side side, timesteps b and, where it reads one, a text, to b outputs side side."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, emb = shape.multiples[0] * shape.channels, 4 * shape.channels
        self.time_embed = nn.Sequential(nn.Linear(shape.channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        if shape.text:
            self._read(shape.text, emb)
        inputs, outputs = (shape.patch**2 * channels for channels in (shape.inputs, shape.outputs))
        self.input_blocks = nn.ModuleList([Blocks(nn.Conv2d(inputs, width, 3, padding=1))])
        kept, side, levels = [width], shape.side // shape.patch, len(shape.multiples)
        for level, multiple in enumerate(shape.multiples):
            for _ in range(shape.blocks):
                self.input_blocks.append(self._blocks(width, multiple * shape.channels, side))
                width = multiple * shape.channels
                kept.append(width)
            if level < levels - 1:
                self.input_blocks.append(Blocks(ResBlock(shape, width, width, "down")))
                kept.append(width)
                side //= 2
        self.middle_block = Blocks(
            ResBlock(shape, width, width), Attention(shape, width), ResBlock(shape, width, width)
        )
        self.output_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(shape.multiples))):
            for number in range(shape.blocks + 1):
                blocks = self._blocks(width + kept.pop(), multiple * shape.channels, side)
                width = multiple * shape.channels
                if level and number == shape.blocks:
                    blocks.append(ResBlock(shape, width, width, "up"))
                    side *= 2
                self.output_blocks.append(blocks)
        self.out = nn.Sequential(
            nn.GroupNorm(shape.groups, width), nn.SiLU(),
            _zeroed(nn.Conv2d(width, outputs, 3, padding=1)),
        )  # fmt: skip

    def _blocks(self, width: int, out: int, side: int) -> Blocks:
        attends = side in self.shape.attention
        more = [Attention(self.shape, out)] if attends else []
        return Blocks(ResBlock(self.shape, width, out), *more)

    def _read(self, text: Text, emb: int) -> None:
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(
            *(TextBlock(text.width, text.heads) for _ in range(text.layers))
        )
        self.final_ln = nn.LayerNorm(text.width)
        self.token_embedding = nn.Embedding(text.vocabulary, text.width)
        self.positional_embedding = nn.Parameter(torch.zeros(text.tokens, text.width))
        self.padding_embedding = nn.Parameter(torch.zeros(text.tokens, text.width))
        self.transformer_proj = nn.Linear(text.width, emb)

    def read(self, tokens: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """What the text transformer makes of tokens, b tokens; there: which are none of the padding."""
        x = self.token_embedding(tokens) + self.positional_embedding
        x = torch.where(there[..., None], x, self.padding_embedding.to(x))
        read: torch.Tensor = self.final_ln(self.transformer.resblocks(x))  # type: ignore[operator]
        return read

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        """text: what `read` gave, b tokens width."""
        emb = self.time_embed(embedded(t, self.shape.channels))
        if text is not None:
            emb = emb + self.transformer_proj(text[:, -1])
            text = text.transpose(1, 2)
        kept, h = [], F.pixel_unshuffle(x, self.shape.patch)
        for block in self.input_blocks:
            h = block(h, emb, text)
            kept.append(h)
        h = self.middle_block(h, emb, text)
        for block in self.output_blocks:
            h = block(torch.cat([h, kept.pop()], 1), emb, text)
        out: torch.Tensor = F.pixel_shuffle(self.out(h), self.shape.patch)
        return out

    def save_pretrained(self, folder: Path) -> None:
        """Write shape and weights into a folder, as `UNet.from_pretrained` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(asdict(self.shape), indent=2) + "\n", encoding="utf-8")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """The network of a folder, frozen and in float32. Raises ModelUnavailable if it is not whole."""
        with loading(folder, "network"):
            facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            text = Text(**facts.pop("text")) if facts["text"] else None
            facts |= {"multiples": tuple(facts["multiples"]), "attention": tuple(facts["attention"])}
            return cls.filled(Shape(**{**facts, "text": text}), load_file(folder / WEIGHTS))

    @classmethod
    def filled(cls, shape: Shape, weights: Mapping[str, torch.Tensor]) -> Self:
        """A network of that shape with these weights, all of them and no others.

        Raises ValueError where one is missing, is too many or has another shape.
        """
        with torch.device("meta"):  # no numbers are drawn that would be thrown away
            network = cls(shape)
        wanted = network.state_dict()
        odd = [k for k in {**wanted, **weights} if k not in weights or k not in wanted]
        odd += [k for k, v in wanted.items() if k in weights and weights[k].shape != v.shape]
        if odd:
            raise ValueError(f"{len(odd)} tensors are missing, too many or misshapen, such as {odd[0]}")
        network.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
        return network.eval().requires_grad_(False)


def embedded(t: torch.Tensor, width: int) -> torch.Tensor:
    """Timesteps as cosines and sines, b width."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)
