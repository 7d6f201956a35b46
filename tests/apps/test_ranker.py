"""The ranker in the box, on edits of the model in the box."""

import numpy as np
from skimage import data

from bld import Editor


def test_the_bundled_ranker_prefers_an_edit_to_what_was_there() -> None:
    editor = Editor.from_pretrained("mini", device="cpu")
    assert editor.ranker is not None
    assert editor.ranker.name == "mini/ranker"
    photo, mask = data.astronaut()[:256, 256:], np.zeros((256, 256), bool)
    mask[80:180, 80:180] = True
    result = editor.edit(photo, mask, "a lemon", candidates=2, seed=0, steps=20)
    scores = [candidate.score for candidate in result.candidates]
    assert scores == sorted(scores, reverse=True, key=lambda score: score or 0)
    box, best = np.s_[80:180, 80:180], result.best.photograph.pixels
    before, after = (editor.ranker.score(picture[box] / 255, "a lemon") for picture in (photo, best))
    assert after > before
