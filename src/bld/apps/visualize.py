"""Pictures of an edit as it happens: a strip, an animation, and the latents it ended on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bld.apps.contact import contact_sheet
from bld.errors import MissingExtra
from bld.process import Frame

RECORD, FILM = "process.json", "process.mp4"
ENTRIES = ("strip.png", "latents.png", "process.gif", RECORD)
LARGEST = 192  # px, side of a tile
MILLISECONDS, HOLD = 200, 1500  # of a frame, and of the last one

Bytes = npt.NDArray[np.uint8]


def _tile(values: npt.NDArray[np.float32]) -> Image.Image:
    """A picture h w 3 or h w in [0, 1], enlarged without smoothing: cells stay cells."""
    pixels = Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
    scale = LARGEST / max(pixels.size)
    size = tuple(max(1, round(side * scale)) for side in pixels.size)
    return pixels.resize((size[0], size[1]), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _rows(rows: Sequence[Sequence[tuple[str, npt.NDArray[np.float32]]]]) -> Image.Image:
    """Rows of labelled tiles, all of one size."""
    return contact_sheet([[(label, _tile(values)) for label, values in row] for row in rows])


def strip(frames: Sequence[Frame]) -> Image.Image:
    """The guesses over the steps, and under each the mask that was in force."""
    pictures = [(f"{f.step} of {f.steps}", f.picture) for f in frames]
    return _rows([pictures, [(f"noise {f.level.sigma:.2f}", _large(f)) for f in frames]])


def latents(frame: Frame) -> Image.Image:
    """Each channel of the final latent, from its 1st to its 99th percentile, and the final mask."""
    channels = frame.z_0[0].cpu().numpy()
    low, high = np.percentile(channels, (1, 99), axis=(1, 2), keepdims=True)
    scaled = ((channels - low) / np.maximum(high - low, 1e-6)).clip(0, 1).astype(np.float32)
    return _rows([[*((f"channel {i}", c) for i, c in enumerate(scaled)), ("mask", frame.m_latent)]])


def _large(frame: Frame) -> npt.NDArray[np.float32]:
    """The mask of a frame at its picture's size."""
    factor = frame.picture.shape[0] // frame.m_latent.shape[0]
    return np.kron(frame.m_latent, np.ones((factor, factor), np.float32))


def animation(frames: Sequence[Frame]) -> list[Image.Image]:
    """One picture a frame: the guess, and beside it the mask."""
    return [_rows([[(f"{f.step} of {f.steps}", f.picture), ("mask", _large(f))]]) for f in frames]


def has_film(folder: Path) -> bool:
    """Whether an earlier run left a film there: one that its record does not name is somebody else's."""
    try:
        return FILM in json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_gif(frames: Sequence[Frame], path: Path) -> None:
    """Write the animation as a GIF that goes round, resting on the result."""
    first, *others = animation(frames)
    lasting = [MILLISECONDS] * len(others) + [HOLD]
    first.save(path, save_all=True, append_images=others, duration=lasting, loop=0)


def film_writer() -> Any:
    """imageio-ffmpeg's writer of films. Raises MissingExtra where it is not installed."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise MissingExtra(
            "--mp4 needs imageio-ffmpeg: pip install 'blended-latent-diffusion[video]'"
        ) from error
    return imageio_ffmpeg.write_frames


def write_mp4(frames: Sequence[Frame], path: Path) -> None:
    """Write the animation as an H.264 film. Raises MissingExtra without imageio-ffmpeg."""
    pictures = [np.asarray(picture) for picture in animation(frames)]
    height, width = (side // 2 * 2 for side in pictures[0].shape[:2])  # H.264 halves its colour planes
    film = film_writer()(
        path, (width, height), fps=1000 / MILLISECONDS, macro_block_size=1, ffmpeg_log_level="error"
    )
    film.send(None)
    for picture in pictures + pictures[-1:] * (HOLD // MILLISECONDS):
        film.send(np.ascontiguousarray(picture[:height, :width]))
    film.close()
