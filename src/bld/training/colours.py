"""Colour words: which cut-outs have one colour to change, how another is given to them, and what colour
stands in a picture.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Colour(NamedTuple):
    """What a colour word means. hue: degrees. saturation: a factor. value: an exponent, below 1 lightens."""

    hue: float
    saturation: float = 1.0
    value: float = 1.0


COLOURS = {
    "red": Colour(2),
    "orange": Colour(28, value=0.75),
    "yellow": Colour(52, value=0.6),
    "green": Colour(125),
    "blue": Colour(218),
    "purple": Colour(278),
    "pink": Colour(332, saturation=0.65, value=0.7),
}
SATURATED = 0.35  # from here on a pixel has a hue that is seen
ONE_COLOUR = 0.35  # of a cut-out's pixels must be of one hue for it to have a colour
ABOUT = 25.0  # degrees to either side that count as one hue


def hsv(rgb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hue in degrees [0, 360), saturation and value in [0, 1], each b h w, of b 3 h w in [0, 1]."""
    value, channel = rgb.max(1)
    chroma = value - rgb.amin(1)
    r, g, b = rgb.unbind(1)
    apart = torch.stack([g - b, b - r, r - g], 1).gather(1, channel[:, None])[:, 0]
    hue = 60 * (apart / chroma.clamp(min=1e-6) + 2 * channel)
    return hue % 360, chroma / value.clamp(min=1e-6), value


def rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The inverse of `hsv`: b 3 h w."""

    def channel(offset: int) -> torch.Tensor:
        k = (offset + hue / 60) % 6
        return value * (1 - saturation * torch.minimum(k, 4 - k).clamp(0, 1))

    return torch.stack([channel(5), channel(3), channel(1)], 1)


def apart(a: torch.Tensor, b: torch.Tensor | float) -> torch.Tensor:
    """From hue b to hue a the shorter way round, -180 to 180 degrees."""
    return (a - b + 180) % 360 - 180


def dominant(picture: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The hue that most pixels have, in degrees, and the share of the weight that has it: b each.

    picture: b 3 h w in [0, 1]; weight: b h w, where to look.
    """
    hue, saturation, value = hsv(picture)
    seen = weight * ((saturation > SATURATED) & (value > 0.15))
    bins = torch.zeros(len(picture), 72).scatter_add(1, (hue / 5).long().flatten(1) % 72, seen.flatten(1))
    reach = int(ABOUT / 5)
    around = F.pad(bins[:, None], (reach, reach), mode="circular").unfold(2, 2 * reach + 1, 1)[:, 0]
    nearer = 1 - torch.arange(-reach, reach + 1).abs() / (reach + 1)  # or a narrow peak has no one middle
    place = (around * nearer).sum(-1).argmax(1)
    most = around.sum(-1).gather(1, place[:, None])[:, 0]
    return place * 5 + 2.5, most / weight.sum((1, 2)).clamp(min=1e-6)


def nearest(hue: float) -> str:
    """The colour word of a hue."""
    return min(COLOURS, key=lambda word: abs(float(apart(torch.tensor(hue), COLOURS[word].hue))))


def recoloured(rgba: torch.Tensor, own: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cut-outs with the pixels of their own hue in another colour; greys and other hues stay as they are.

    rgba: b 4 h w in [0, 1], premultiplied; own: b, degrees; target: b, index into COLOURS.
    """
    table = torch.tensor([list(colour) for colour in COLOURS.values()], device=rgba.device)
    wanted, stronger, lighter = (column[:, None, None] for column in table[target].unbind(1))
    alpha = rgba[:, 3:]
    colour = (rgba[:, :3] / alpha.clamp(min=1e-3)).clamp(0, 1)
    hue, saturation, value = hsv(colour)
    off = apart(hue, own[:, None, None])
    share = ((60 - off.abs()) / 20).clamp(0, 1) * ((saturation - 0.15) / 0.2).clamp(0, 1)
    painted = rgb((wanted + off / 3) % 360, (saturation * stronger).clamp(0, 1), value**lighter)
    mixed = colour + share[:, None] * (painted - colour)
    return torch.cat([mixed * alpha, alpha], 1)
