"""Background reconstruction: from what the decoder gives to the picture a user gets (section 4.2).

Every way has one signature: it takes a `Scene` and returns the crop's pixels. What lies outside the crop
is never touched by any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bld import poisson as gradient_domain
from bld.images import Photograph, from_srgb, from_tensor, resize_pixels, seen, to_tensor
from bld.masks import Box, FloatArray, feather_inside
from bld.options import TUNED, EditOptions, Reconstruction

Array = npt.NDArray[Any]
FAST_BETAS = (0.7, 0.9)  # Adam's averages over some 3 and 10 steps, for a tuning of a dozen
FAST_RATE = 0.1  # of a tuned latent or activation, as a share of its root mean square

Groups = list[dict[str, Any]]  # Adam's parameter groups
Report = Callable[[int], None]
"""Called with the number of tuning steps that are done. An exception it raises ends the reconstruction."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One candidate before its background is reconstructed.

    photograph: the whole of it. box: the crop the model worked on. mask: h w of the photograph, 1 = edit.
    decoded: D(z_0) at the model's size, h w 3 in [0, 1], sRGB. z_0: 1 c h w. decoder: makes a copy of D
    that may be tuned. options: resolved.
    """

    photograph: Photograph
    box: Box
    mask: FloatArray
    decoded: FloatArray
    z_0: torch.Tensor
    decoder: Callable[[], nn.Sequential]
    options: EditOptions

    @property
    def original(self) -> Array:
        """The photograph's own pixels in the crop."""
        return self.photograph.pixels[self.box.slices]

    def generated(self, decoded: FloatArray) -> Array:
        """A picture of the model's at the crop's size, in the photograph's colour space and depth."""
        rgb = resize_pixels(decoded, (self.box.height, self.box.width))
        return from_srgb(rgb, self.photograph.icc_profile, self.photograph.pixels.dtype)


def none(scene: Scene, report: Report) -> Array:
    """The decoder's picture as it is, background and all."""
    return scene.generated(scene.decoded)


def stitch(scene: Scene, report: Report) -> Array:
    """The decoder's picture inside the mask, feathered; the photograph's own pixels outside, to the byte."""
    original = scene.original
    weight = _feathered(scene)[scene.box.slices][..., None]
    mixed = np.rint(original + weight * (scene.generated(scene.decoded).astype(np.float64) - original))
    return np.where(weight > 0, mixed.astype(original.dtype), original)


def poisson(scene: Scene, report: Report) -> Array:
    """The gradients of the decoder's picture inside the mask, joined to the photograph at its edge.

    Outside the mask the photograph's own pixels, to the byte. Within, colours shift by what the two
    pictures differ along the edge: where they differ much, the edit takes on the background's colour.
    """
    original, limit = scene.original, np.iinfo(scene.photograph.pixels.dtype).max
    # One pixel more on every side that has one: a mask may end where the crop does.
    box = scene.box
    rows = slice(max(0, box.top - 1), box.bottom + 1)
    columns = slice(max(0, box.left - 1), box.right + 1)
    around = scene.photograph.pixels[rows, columns]
    within = (
        slice(box.top - rows.start, box.bottom - rows.start),
        slice(box.left - columns.start, box.right - columns.start),
    )
    margins = [(w.start, n - w.stop) for w, n in zip(within, around.shape, strict=False)]
    pasted = np.pad(scene.generated(scene.decoded).astype(np.float64), [*margins, (0, 0)], mode="edge")
    inside = np.zeros(around.shape[:2], bool)
    inside[within] = scene.mask[box.slices] > 0
    joined = gradient_domain.clone(around, pasted, inside)[within]
    return np.where(inside[within][..., None], np.rint(joined).clip(0, limit), original).astype(
        original.dtype
    )


def latents(scene: Scene, report: Report) -> Array:
    """D(z*): the latent tuned from z_0 so that it decodes to the photograph outside the mask."""
    decoder = scene.decoder().requires_grad_(False)
    z = scene.z_0.detach().clone().requires_grad_()
    return scene.generated(tune(scene, [_values(scene.options, z)], lambda: decoder(z), report))


def decoder(scene: Scene, report: Report) -> Array:
    """D*(z_0): a copy of the decoder whose weights are tuned for this one picture, and then dropped.

    Of its blocks the last `tune_blocks` are tuned; the others, which stay what they are, run once. The fast
    tuner moves what these hand on as well: one picture's values, each felt in one place, fit it in fewer
    steps than weights that are felt everywhere.
    """
    blocks = scene.decoder()
    fixed = len(blocks) - min(len(blocks), scene.options.tune_blocks)
    tuned = blocks[fixed:].requires_grad_(True)
    with torch.no_grad():
        reached = blocks[:fixed](scene.z_0).clone()
    groups: Groups = [{"params": list(tuned.parameters())}]
    if scene.options.tuner == "fast":
        groups.append(_values(scene.options, reached.requires_grad_()))
    return scene.generated(tune(scene, groups, lambda: tuned(reached), report))


def _values(options: EditOptions, x: torch.Tensor) -> dict[str, Any]:
    """A latent or an activation as what Adam tunes; the fast tuner's rate goes by its size."""
    size = float(x.detach().square().mean().sqrt())
    return {"params": [x], "lr": FAST_RATE * size if options.tuner == "fast" else options.tune_lr}


def tune(scene: Scene, groups: Groups, decode: Callable[[], torch.Tensor], report: Report) -> FloatArray:
    """Adam on `groups` until `decode` gives the photograph outside the mask and the edit inside.

    The loss of section 4.2: MSE(D * m, x_hat * m) + weight * MSE(D * (1 - m), x * (1 - m)), over all
    elements. Returns the last picture, h w 3 in [0, 1].
    """
    options, fast = scene.options, scene.options.tuner == "fast"
    optimizer = torch.optim.Adam(groups, lr=options.tune_lr, betas=FAST_BETAS if fast else (0.9, 0.999))
    x, x_hat, m = _targets(scene, decode().detach())
    half = torch.autocast(x_hat.device.type, torch.bfloat16, enabled=fast and has_bfloat16(x_hat.device))
    by_area = options.tune_loss == "area"
    area, rest = (float(side.square().mean().clamp(min=1e-6)) if by_area else 1.0 for side in (m, 1 - m))
    for step in range(options.tune_steps):
        with half:
            y = decode().float()
        background = ((y - x) * (1 - m)).square().mean()
        if _psnr(float(background.detach()), m) >= options.tune_psnr:
            break
        loss = options.tune_weight * background / rest
        if options.tune_foreground:
            loss = loss + ((y - x_hat) * m).square().mean() / area
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        report(step + 1)
    with torch.no_grad():
        picture: FloatArray = from_tensor(decode())[0]
    return picture


def _targets(scene: Scene, x_hat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, x_hat and m at the model's size: 1 3 h w in about [-1, 1], and h w in [0, 1].

    For the fast tuner x_hat is the stitched picture: what it tunes is felt in so few pixels that it would
    draw the step at the mask's edge as it is, where the paper's blurs it.
    """
    size = scene.decoded.shape[:2]

    def sampled(mask: FloatArray) -> torch.Tensor:
        return torch.from_numpy(resize_pixels(mask[scene.box.slices], size)).to(x_hat)

    x = to_tensor(seen(scene.photograph, scene.box.slices, size)).to(x_hat)
    if scene.options.tuner == "fast":
        x_hat = torch.lerp(x, x_hat, sampled(_feathered(scene)))
    return x, x_hat, sampled(scene.mask)  # a mask's edge is shared by both terms


def _feathered(scene: Scene) -> FloatArray:
    """The mask feathered as a whole: one that runs past the crop has no edge at the crop's border."""
    if scene.options.feather is None:
        raise ValueError("options must be resolved")
    return feather_inside(scene.mask, scene.options.feather)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself; a processor that does not is slower with it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    kinds = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of torch 2.6 on
    return device.type == "cpu" and any(getattr(torch.cpu, kind, bool)() for kind in kinds)


def _psnr(background: float, m: torch.Tensor) -> float:
    """PSNR outside the mask, dB, from the mean squared error over all elements of [-1, 1] pictures."""
    error = background / max(float((1 - m).square().mean()), 1e-6)
    return float(10 * np.log10(4 / max(error, 1e-12)))


def exact(scene: Scene, made: Array) -> Array:
    """The photograph's own pixels outside the mask, to the byte, with no new step at its edge.

    Inside, what the nearest pixel outside differed by is added: whole on the outermost pixels, so that the
    step across the edge stays as tuning left it, and fading out over the feather.
    """
    from scipy.ndimage import distance_transform_edt  # a third of a second

    if scene.options.feather is None:
        raise ValueError("options must be resolved")
    original, inside = scene.original, scene.mask[scene.box.slices] > 0
    if inside.all():
        return made
    residual = original.astype(np.float64) - made
    distance, nearest = distance_transform_edt(inside, return_indices=True)
    feather = scene.options.feather
    t = np.minimum((distance - 1) / feather, 1) if feather else np.ones_like(distance)
    faded = (1 - scene.mask[scene.box.slices] * t * t * (3 - 2 * t))[..., None]
    joined = np.rint(made + faded * residual[tuple(nearest)]).clip(0, np.iinfo(original.dtype).max)
    return np.where(inside[..., None], joined.astype(original.dtype), original)


WAYS: dict[Reconstruction, Callable[[Scene, Report], Array]] = {
    "none": none,
    "stitch": stitch,
    "poisson": poisson,
    "latents": latents,
    "decoder": decoder,
}


def length(way: Reconstruction, options: EditOptions) -> int:
    """How many steps a way reports at most."""
    return options.tune_steps if way in TUNED else 1


def reconstruct(way: Reconstruction, scene: Scene, report: Report = lambda done: None) -> Photograph:
    """The finished photograph: size, depth, profile and alpha are the original's."""
    pixels = scene.photograph.pixels.copy()
    with torch.inference_mode(False), torch.enable_grad():  # tuning needs gradients, whatever the caller does
        made = WAYS[way](scene, report)
    pixels[scene.box.slices] = exact(scene, made) if scene.options.exact and way in TUNED else made
    report(length(way, scene.options))
    return Photograph(pixels, scene.photograph.alpha, scene.photograph.icc_profile)
