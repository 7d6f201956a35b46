"""Blended latent diffusion: Algorithm 1 of the paper (Avrahami, Fried and Lischinski 2023), section 4.1.

The picture outside the mask is never denoised: after every step it is put back, at the noise level that
the step ended on. Encoding, decoding, guidance and what the network predicts are the caller's and the
model's; previews, progress and cancelling are up to whoever iterates.
"""

from collections.abc import Iterator, Sequence

import torch

from bld.models.base import CLEAN, Level, Trajectory


def noise_like(z_init: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """eps ~ N(0, I) for each candidate from its own generator: n c h w for z_init of 1 c h w."""
    draws = [torch.randn(z_init.shape[1:], generator=g, device=g.device) for g in generators]
    return torch.stack(draws).to(z_init)


def blend(
    trajectory: Trajectory,
    z_init: torch.Tensor,
    m_latent: Sequence[torch.Tensor],
    generators: Sequence[torch.Generator],
    left_off: tuple[torch.Tensor, Level] | None = None,
) -> Iterator[torch.Tensor]:
    """Yield z after each step, as n c h w; the last one is the edit, ready for the decoder.

    trajectory: the model's steps from level k down to clean, guided by the prompt d.
    z_init: E(x), 1 c h w. m_latent: the mask at each step, h w, 1 = edit; all the same, or shrinking
    (section 4.3). generators: one per candidate, so that a candidate never depends on its neighbours.
    left_off: the z of an earlier part of the trajectory and its level, if these steps go on from there.

    Outside the mask the last z equals z_init bit for bit; an empty mask gives z_init, and a full one
    plain sampling from the noised z_init.
    """
    z, level = left_off or (z_init, CLEAN)
    for step, m in zip(trajectory, m_latent, strict=True):  # for t from k to 0
        if step.level_in != level:  # at first; a consistency model's every step ends clean, so again then
            z = step.level_in.noise(z, noise_like(z_init, generators))  # z_k ~ noise(z_init, k)
        z_fg = step.denoise(z)  # z_fg ~ denoise(z_t, d, t)
        z_bg = step.level_out.noise(z_init, noise_like(z_init, generators))  # z_bg ~ noise(z_init, t)
        z = z_fg * m + z_bg * (1 - m)  # z_t <- z_fg * m_latent + z_bg * (1 - m_latent)
        level = step.level_out
        yield z
