"""What is cut out of composites to be looked at: by the ranker and by the judge."""

import torch

from bld.training.composites import Composites


def object_boxes(drawn: Composites, generator: torch.Generator) -> torch.Tensor:
    """The objects' boxes, jittered as a user's mask would be; random boxes in empty scenes."""
    seen = drawn.alpha[:, 0] > 0.1
    size = seen.shape[-1]
    edges = []
    for axis in (2, 1):
        line = seen.any(axis).float()
        edges += [line.argmax(1), size - line.flip(1).argmax(1)]
    top, bottom, left, right = (edge.float() / size for edge in edges)
    box = torch.stack([top, left, bottom, right], 1)
    anywhere = 0.2 + 0.3 * torch.rand(len(box), 2, generator=generator)
    box = torch.where((drawn.name >= 0)[:, None], box, torch.cat([anywhere, anywhere + 0.4], 1))
    extent = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    grow = extent * torch.tensor([-1.0, -1.0, 1.0, 1.0]) * 0.2 * torch.rand(len(box), 1, generator=generator)
    shift = 0.1 * (2 * torch.rand(len(box), 2, generator=generator) - 1)
    return box + grow + extent * shift.repeat(1, 2)
