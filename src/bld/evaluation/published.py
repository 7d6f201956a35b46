"""What the paper reports (tables 1 to 3), on its own models, photographs and hardware (an A10 GPU)."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of the paper. Shares are in percent, parameters in 10^9 (model and CLIP).

    one, all: seconds for one picture and for the whole batch. reconstructed: both, with the background.
    """

    method: str
    batch: int
    batch_precision: float | None = None
    diversity: float | None = None
    top_precision: float
    one: float
    all: float | None = None
    reconstructed: tuple[float, float] | None = None
    parameters: tuple[float, float]


PUBLISHED = (
    Published(method="Blended latent diffusion", batch=24, batch_precision=28.66, diversity=0.115,
              top_precision=54, one=6, all=53, reconstructed=(25, 72), parameters=(1.45, 0.15)),
    Published(method="Blended Diffusion", batch=64, batch_precision=10.4, diversity=0.106, top_precision=36,
              one=27, all=1472, parameters=(0.55, 0.15)),
    Published(method="Local CLIP-guided diffusion", batch=64, batch_precision=10.49, diversity=0.419,
              top_precision=38, one=27, all=1472, parameters=(0.55, 0.15)),
    Published(method="PaintByWord++", batch=1, top_precision=0, one=78, parameters=(0.09, 0.15)),
    Published(method="GLIDE-filtered", batch=24, batch_precision=1.87, diversity=0.114, top_precision=4,
              one=7, all=89, parameters=(0.30, 0.15)),
)  # fmt: skip
