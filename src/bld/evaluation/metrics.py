"""What is measured on the candidates of one case, and how cases add up (section 5.1, appendix B.2)."""

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import cv2
import numpy as np

from bld.classify import Classifier, label_index, likeliest
from bld.evaluation.distance import Distance
from bld.masks import FloatArray

ISOLATED = 32  # 8-bit levels of luminance by which a pixel stands out of its neighbours
TOP = 5  # labels that the name has to be among
Z95 = 1.959964  # standard deviations of a 95 % interval


def place(classifier: Classifier, picture: FloatArray, mask: FloatArray, label: str) -> int:
    """The place of a label among what the classifier finds in the mask; 0 is the likeliest."""
    found = classifier.probabilities(classifier.view(picture, mask))
    return likeliest(found, len(found)).index(label_index(classifier.labels, label))


def diversity(distance: Distance, pictures: Sequence[FloatArray], mask: FloatArray) -> float | None:
    """The mean distance over all pairs; None if there are fewer than two pictures."""
    if len(pictures) < 2:
        return None
    features = [distance.features(picture, mask) for picture in pictures]
    return fmean(distance.between(a, b) for a, b in combinations(features, 2))


def clipped(picture: np.ndarray[Any, Any], mask: FloatArray) -> float:
    """The share of values in the mask that are 0 or 255. picture: h w 3 uint8."""
    values = picture[mask > 0]
    return float(((values == 0) | (values == 255)).mean())


def isolated(picture: np.ndarray[Any, Any], mask: FloatArray) -> float:
    """The share of pixels in the mask that stand out of their 3 by 3 neighbourhood's median by more than
    32 levels of luminance: the lone bright dots of figure 18. picture: h w 3 uint8.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    apart = cv2.absdiff(grey, cv2.medianBlur(grey, 3)) > ISOLATED
    return float(apart[mask > 0].mean())


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there; None if none is."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def wilson(hits: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927). hits: a tie may count half."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = hits / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def binomial(hits: int, count: int) -> float:
    """The two-sided p-value of a share against one half, exact: outcomes no likelier than this one."""
    weights = [math.comb(count, i) for i in range(count + 1)]
    no_likelier = sum(weight for weight in weights if weight <= weights[hits])
    return float(min(1.0, no_likelier / 2**count))
