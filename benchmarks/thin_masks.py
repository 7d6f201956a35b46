"""How often an edit in a thin mask shows, with and without shrinking, by nearest and by coverage.

    python benchmarks/thin_masks.py --data DATA

Lines and rings of 2 to 8 px on photographs of 256 px. An edit shows if the ranker finds the prompt in
the box of the mask better than in the untouched photograph (a positive margin of the CLIP cosine).
"""

import cv2
import numpy as np
from cases import Array, Case, arguments, cases, checked, sampled

from bld import Editor
from bld.images import from_tensor
from bld.masks import FloatArray, latent_mask, shrink_schedule
from bld.rank import views
from bld.task import Task


def thin(side: int, rng: np.random.Generator) -> Array:
    """A line or a ring, 2 to 8 px wide; h w bool."""
    mask = np.zeros((side, side), np.uint8)
    width = int(rng.integers(2, 9))
    if rng.random() < 0.5:
        ends = rng.integers(side // 8, side * 7 // 8, (2, 2))
        while np.abs(ends[0] - ends[1]).max() < side // 3:
            ends = rng.integers(side // 8, side * 7 // 8, (2, 2))
        cv2.line(mask, ends[0].tolist(), ends[1].tolist(), 1, width)
    else:
        centre = rng.integers(side * 3 // 8, side * 5 // 8, 2)
        cv2.circle(mask, centre.tolist(), int(rng.integers(side // 6, side // 3)), 1, width)
    return mask > 0


def by_nearest(task: Task) -> FloatArray:
    """The latent mask as nearest-neighbour scaling gives it: a cell is edited if its centre is."""
    mask = (task.mask[task.crop.box.slices] > 0).astype(np.float32)
    return np.asarray(cv2.resize(mask, task.grid[::-1], interpolation=cv2.INTER_NEAREST_EXACT))


def by_coverage(task: Task) -> FloatArray:
    """The editor's own: a cell is edited if any of its pixels is."""
    return latent_mask(task.mask[task.crop.box.slices], task.grid)


def margins(editor: Editor, case: Case, steps: int, seed: int) -> dict[tuple[str, bool], tuple[float, float]]:
    """(margin, share of latent cells edited) for each latent mask, with and without shrinking."""
    task = checked(editor.model, case, steps=steps, seed=seed)
    seen = task.seen_mask()

    def score(picture: FloatArray) -> float:
        assert editor.ranker is not None
        return editor.ranker.score(views(picture, seen, "crop")[0], task.prompt)

    before, found = score(from_tensor(task.x())[0]), {}
    for name, latent in (("nearest", by_nearest), ("coverage", by_coverage)):
        for shrink in (False, True):
            m = latent(task)
            schedule = shrink_schedule(m, steps) if shrink and m.any() else [m] * steps
            (after,) = sampled(editor.model, task, schedule, seeds=[seed])
            found[name, shrink] = score(after) - before, float(m.mean())
    return found


def main() -> None:
    """Measure and print the table."""
    parser = arguments(__doc__, cases=64)
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    editor = Editor.from_pretrained(given.model)
    drawn = cases(given.data, given.cases, thin)
    rows = [margins(editor, case, given.steps, seed) for seed, case in enumerate(drawn)]
    print("| latent mask | shrinking | edit shows | mean margin | nothing to edit |\n|---|---|---|---|---|")
    for name, shrink in rows[0]:
        margin, area = np.array([row[name, shrink] for row in rows]).T
        print(
            f"| {name} | {'yes' if shrink else 'no'} | {100 * (margin > 0).mean():.0f} % "
            f"| {margin.mean():+.3f} | {(area == 0).sum()} of {len(rows)} |"
        )


if __name__ == "__main__":
    main()
