"""Fresh against fixed noise on the background: what the judge names, the seam and the background.

    python benchmarks/noise.py --data DATA

The paper draws new noise for the background at every step. The other way is to draw it once: the
background then follows one path from noise to clean, as a deterministic sampler's own would.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from cases import arguments, cases, checked, sampled

from bld import Editor
from bld.blend import blend, noise_like
from bld.classify import label_index, likeliest, load_classifier
from bld.fidelity import LUMA, seam_score
from bld.images import from_tensor
from bld.models.base import Trajectory
from bld.training.sheet import drawn_mask


def fixed(
    trajectory: Trajectory,
    z_init: torch.Tensor,
    m_latent: Sequence[torch.Tensor],
    generators: Sequence[torch.Generator],
) -> Iterator[torch.Tensor]:
    """`bld.blend.blend` with one noise for all steps."""
    eps = noise_like(z_init, generators)
    z = trajectory[0].level_in.noise(z_init, eps)
    for step, m in zip(trajectory, m_latent, strict=True):
        z = step.denoise(z) * m + step.level_out.noise(z_init, eps) * (1 - m)
        yield z


def main() -> None:
    """Measure and print the table."""
    parser = arguments(__doc__, cases=64)
    parser.add_argument("--candidates", type=int, default=4)
    given = parser.parse_args()
    editor, judge = Editor.from_pretrained(given.model), load_classifier("auto", given.model)
    found: dict[str, list[list[tuple[float, float, float]]]] = {"fresh": [], "fixed": []}
    for seed, case in enumerate(cases(given.data, given.cases, drawn_mask)):
        task = checked(editor.model, case, seed=seed)
        masks, x = task.m_latent(task.options.steps), from_tensor(task.x())[0]
        seeds = [seed * given.candidates + i for i in range(given.candidates)]
        for name, by in (("fresh", blend), ("fixed", fixed)):
            found[name].append([])
            for picture in sampled(editor.model, task, masks, seeds=seeds, by=by):
                shares = judge.probabilities(judge.view(picture, task.seen_mask()))
                place = label_index(judge.labels, case.name.name)
                before, after = (255 * shown @ LUMA for shown in (x, picture))
                jump = seam_score(before, after, task.seen_mask() > 0) or 0.0
                found[name][-1].append((float(shares[place]), float(place in likeliest(shares, 5)), jump))
    print("| background noise | judge's probability | in its top 5 | seam |\n|---|---|---|---|")
    for name, rows in found.items():
        p, hit, jump = np.array(rows).mean(1).T  # of each edit: its candidates are no independent tries
        error = p.std(ddof=1) / len(p) ** 0.5
        print(f"| {name} | {p.mean():.3f} +- {error:.3f} | {100 * hit.mean():.1f} % | {jump.mean():.2f} |")


if __name__ == "__main__":
    main()
