"""Gradient-domain pasting (Perez et al. 2003): the pasted picture's gradients, the photograph's edge.

OpenCV's seamlessClone does the same on a rectangle, but erodes the mask by a pixel, shifts content when
the centre is off by one, works in 8 bits, and holds a mask that touches the picture's border to the old
pixels there. Here the paste meets the photograph where there is one, and the border is free.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array, csr_array

ACCURACY = 1e-6  # of the residual, relative: far below a level of 16 bits
Array = npt.NDArray[Any]


def clone(photograph: Array, pasted: Array, inside: npt.NDArray[np.bool_]) -> Array:
    """Paste with the photograph's values at the edge of the mask and the pasted picture's gradients.

    photograph, pasted: h w 3, floats of any range. inside: h w, True = paste. Returns h w 3; outside
    the mask exactly the photograph, and all of the pasted picture if the mask covers everything.
    """
    if inside.all():
        return pasted.copy()
    result = photograph.astype(np.float64)
    if inside.any():
        lacking = result - pasted  # known outside; inside, the smoothest surface that meets it
        result[inside] = pasted[inside] + membrane(lacking, inside)
    return result


def membrane(values: Array, inside: npt.NDArray[np.bool_]) -> Array:
    """The surface whose Laplacian is 0 inside the mask and that meets `values`, h w c, outside.

    There is no gradient across the picture's border. Returns n c, for the n pixels inside, in order.
    """
    import pyamg  # a third of a second, for one of the finishes

    number = np.full(inside.shape, -1)
    number[inside] = np.arange(np.count_nonzero(inside))
    neighbours = np.zeros(number.max() + 1)
    known = np.zeros((len(neighbours), values.shape[-1]))
    pairs = []
    for axis in (0, 1):
        unknown, value = np.moveaxis(number, axis, 0), np.moveaxis(values, axis, 0)
        for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[1:], np.s_[:-1])):
            i, j, beside = unknown[here], unknown[there], value[there]
            np.add.at(neighbours, i[i >= 0], 1)
            edge = (i >= 0) & (j < 0)
            np.add.at(known, i[edge], beside[edge])
            both = (i >= 0) & (j >= 0)
            pairs.append(np.stack([i[both], j[both]]))
    solve = pyamg.ruge_stuben_solver(_laplacian(neighbours, np.concatenate(pairs, 1))).solve
    return np.stack([solve(column, tol=ACCURACY, accel="cg") for column in known.T], -1)


def _laplacian(neighbours: Array, pairs: Array) -> csr_array:
    """Each unknown times its number of neighbours, less those neighbours that are unknown too."""
    index = np.arange(len(neighbours))
    rows, columns = np.concatenate([np.stack([index, index]), pairs], 1)
    entries = np.concatenate([neighbours, -np.ones(pairs.shape[1])])
    return coo_array((entries, (rows, columns)), shape=(len(index), len(index))).tocsr()
