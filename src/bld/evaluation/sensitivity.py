"""How an edit answers to small changes of what it is given (appendix D, figures 24 to 26)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from bld.images import Photograph, Source
from bld.masks import FloatArray, mask_box
from bld.models.base import LatentModel
from bld.options import EditOptions
from bld.task import check

GROWTH = 0.1  # of the mask's longer side, added or taken all around
DEGREES = 5.0
BLUR = 2.0  # px, standard deviation


@dataclass(frozen=True, eq=False)
class Variant:
    """One request of the series. mask: h w, 1 = edit."""

    label: str
    photograph: Photograph
    mask: FloatArray
    prompt: str


def variants(
    photograph: Photograph, mask: FloatArray, prompt: str, other_prompts: Sequence[str] = ()
) -> list[Variant]:
    """The request as it is, then with one thing changed at a time.

    The other prompts (none: the same one as "a photo of ..."); the mask grown and shrunk by a tenth of
    its longer side; photograph and mask turned by 5 degrees; the photograph blurred by 2 pixels. A mask
    of which shrinking leaves nothing has no shrunk variant.
    """
    given = Variant("as it is", photograph, mask, prompt)
    series = [given]
    series += [
        replace(given, label=other, prompt=other) for other in other_prompts or (f"a photo of {prompt}",)
    ]
    series += [
        replace(given, label="mask grown", mask=grown(mask)),
        replace(given, label="mask shrunk", mask=1 - grown(1 - mask, like=mask)),
        replace(
            given,
            label=f"turned by {DEGREES:g} degrees",
            photograph=_changed(photograph, turned(photograph.pixels)),
            mask=(turned(mask) > 0.5).astype(np.float32),
        ),
        replace(
            given,
            label=f"blurred, sigma {BLUR:g}",
            photograph=_changed(photograph, cv2.GaussianBlur(photograph.pixels, (0, 0), BLUR)),
        ),
    ]
    return [variant for variant in series if variant.mask.any()]


def grown(mask: FloatArray, *, like: FloatArray | None = None) -> FloatArray:
    """A hard mask, h w, grown on all sides by a tenth of its longer side, or of that of another mask."""
    box = mask_box(mask if like is None else like)
    radius = max(1, round(GROWTH * max(box.height, box.width)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(mask, disc), np.float32)


def turned(values: np.ndarray) -> np.ndarray:
    """A picture or a mask turned about its centre, counter-clockwise; the corners are mirrored in."""
    height, width = values.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), DEGREES, 1)
    return cv2.warpAffine(
        values, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )


def _changed(photograph: Photograph, pixels: np.ndarray) -> Photograph:
    """Other pixels in the same colour space; without alpha, which would not fit them."""
    return Photograph(pixels, icc_profile=photograph.icc_profile)


def prepare(
    model: LatentModel,
    image: Source | Photograph,
    mask: Source,
    prompt: str,
    *,
    other_prompts: Sequence[str] = (),
    options: EditOptions,
) -> tuple[list[Variant], EditOptions]:
    """The variants of a request, and the options to edit all of them with: the same seeds, a hard mask.

    Raises InvalidInput as `Editor.edit` does.
    """
    task = check(model, image, mask, prompt, options)
    series = variants(task.photograph, (task.mask > 0).astype(np.float32), prompt, other_prompts)
    return series, replace(
        options,
        seed=task.options.seed,
        soft_mask=False,
        mask_mode="auto",  # the mask is read by now
        invert_mask=False,
        resize_mask=False,
    )
