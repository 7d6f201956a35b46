"""The captions of every subject, as token ids, and a fresh draw of them for each picture."""

from typing import Any

import torch

from bld.training.colours import COLOURS
from bld.training.vocabulary import EMPTY_SCENE, Forms, Name, captions, coloured

NULL_CAPTION = 0.045  # of the composites with an object; with the empty scenes, 10 % of all captions


def every_caption(
    names: tuple[Name, ...], keywords: dict[str, tuple[str, ...]], taught: tuple[Forms, ...]
) -> list[list[tuple[str, float]]]:
    """The captions of each subject with their probabilities, in the order that `Captions.subject` numbers."""
    forms = [
        coloured(name, colour, style) if colour else captions(name, keywords.get(name.name, ()), style)
        for name in names
        for colour in (None, *COLOURS)
        for style in taught
    ]
    return [*forms, list(EMPTY_SCENE)]


class Captions:
    """Token ids of every caption, and a fresh draw of one for each picture.

    What a caption may be of is numbered as its subject: a name, in its own or in another colour, rendered
    or (where there is a second style) drawn; or the empty scene.
    """

    def __init__(
        self,
        names: tuple[Name, ...],
        keywords: dict[str, tuple[str, ...]],
        tokenizer: Any,
        taught: tuple[Forms, ...],
    ) -> None:
        self.styles, forms = taught, every_caption(names, keywords, taught)
        texts = list(dict.fromkeys(["", *(text for form in forms for text, _ in form)]))
        row = {text: i for i, text in enumerate(texts)}
        self.ids = torch.tensor(
            tokenizer(texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)[
                "input_ids"
            ]
        )
        most = 1 + max(len(form) for form in forms)
        self.choices = torch.zeros(len(forms), most, dtype=torch.int64)  # of each subject, rows of ids
        self.weights = torch.zeros(len(forms), most)
        self.weights[:, 0] = NULL_CAPTION
        for i, form in enumerate(forms):
            self.choices[i, 1 : 1 + len(form)] = torch.tensor([row[text] for text, _ in form])
            shares = torch.tensor([weight for _, weight in form])
            self.weights[i, 1 : 1 + len(form)] = (1 - NULL_CAPTION) * shares

    def subject(
        self, name: torch.Tensor, colour: torch.Tensor | int = -1, flat: torch.Tensor | int = 0
    ) -> torch.Tensor:
        """The number of a subject, described as in `Composites`."""
        style = flat * (len(self.styles) - 1)
        number = (name * (1 + len(COLOURS)) + 1 + colour) * len(self.styles) + style
        return torch.where(name < 0, len(self.weights) - 1, number)

    def draw(self, subject: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One caption for each subject, b, as its row of `ids`."""
        pick = torch.multinomial(self.weights[subject], 1, generator=generator)
        return self.choices[subject].gather(1, pick)[:, 0]
