"""What is cut out of composites to be looked at: by the ranker and by the judge."""

import torch
import torch.nn.functional as F

from bld.training.composites import Composites


def look(image: torch.Tensor, box: torch.Tensor, side: int) -> torch.Tensor:
    """Cut boxes (b 4: top, left, bottom, right in [0,1]) out of b 3 s s, scaled to b 3 side side."""
    line = (torch.arange(2 * side, device=image.device) + 0.5) / (2 * side)
    y = box[:, 0, None] + (box[:, 2] - box[:, 0])[:, None] * line
    x = box[:, 1, None] + (box[:, 3] - box[:, 1])[:, None] * line
    grid = torch.stack([x[:, None].expand(-1, 2 * side, -1), y[:, :, None].expand(-1, -1, 2 * side)], -1)
    sampled = F.grid_sample(image, grid * 2 - 1, padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(sampled, 2)


def squared(box: torch.Tensor) -> torch.Tensor:
    """The squares around boxes, b 4."""
    centre = (box[:, :2] + box[:, 2:]) / 2
    half = (box[:, 2:] - box[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([centre - half, centre + half], 1)


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
