"""Does the ranker put the better candidates first? The judge's probability by rank (figure 22).

    python benchmarks/ranking.py --data DATA

24 candidates of each edit, ranked by every view; the judge, which the ranker never saw, gives each the
probability of the prompted name. Top and bottom fifth are five candidates each.
"""

from typing import get_args

import numpy as np
from cases import arguments, cases, checked, sampled

from bld import Editor
from bld.classify import label_index, load_classifier
from bld.options import RankBy
from bld.rank import rank
from bld.training.sheet import drawn_mask


def main() -> None:
    """Measure and print the table."""
    parser = arguments(__doc__, cases=32)
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    editor, judge = Editor.from_pretrained(given.model), load_classifier("auto", given.model)
    assert editor.ranker is not None
    fifths: dict[RankBy, list[list[float]]] = {by: [] for by in get_args(RankBy)}
    for number, case in enumerate(cases(given.data, given.cases, drawn_mask)):
        task = checked(editor.model, case, seed=number, steps=given.steps)
        masks, seeds = task.m_latent(given.steps), [1000 * number + i for i in range(given.candidates)]
        pictures = []
        for i in range(0, len(seeds), 8):
            pictures += sampled(editor.model, task, masks, seeds=seeds[i : i + 8])
        seen = task.seen_mask()
        place = label_index(judge.labels, case.name.name)
        judged = np.array([judge.probabilities(judge.view(picture, seen))[place] for picture in pictures])
        for by, rows in fifths.items():
            order = list(rank(editor.ranker, pictures, seen, task.prompt, by).order)
            ordered = judged[order]
            fifth = max(1, round(len(ordered) / 5))
            rows.append([ordered[0], ordered[:fifth].mean(), ordered[-fifth:].mean(), ordered.mean()])
    print("| ranked by | first | top fifth | bottom fifth | all |\n|---|---|---|---|---|")
    for by, rows in fifths.items():
        print(f"| {by} | " + " | ".join(f"{value:.3f}" for value in np.mean(rows, 0)) + " |")


if __name__ == "__main__":
    main()
