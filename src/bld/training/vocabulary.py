"""The names that the bundled model draws, and the captions that teach them."""

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, kw_only=True)
class Name:
    """One thing the model can draw.

    `sprite` is the cut-out's caption in the data, `also` are other words for it, `article` says whether
    a phrase needs "a" ("a guitar", "jeans"), and `flies` that it casts no shadow on the ground.
    """

    name: str
    group: str
    sprite: str
    also: tuple[str, ...] = ()
    article: bool = True
    flies: bool = False

    def phrase(self, word: str | None = None) -> str:
        """`word` (default: the name) as a prompt: "a guitar", "an owl", "jeans"."""
        word = word or self.name
        if not self.article:
            return word
        return f"{'an' if re.match('[aeio]', word) else 'a'} {word}"


@functools.cache
def vocabulary() -> tuple[Name, ...]:
    """All names, in the order of vocabulary.toml, which is also the order of the judge's classes."""
    text = resources.files(__package__).joinpath("vocabulary.toml").read_text(encoding="utf-8")
    return tuple(
        Name(
            name=name,
            group=group,
            sprite=facts.get("sprite", name),
            also=tuple(facts.get("also", ())),
            article=facts.get("article", True),
            flies=facts.get("flies", False),
        )
        for group, names in tomllib.loads(text).items()
        for name, facts in names.items()
    )


# Caption forms and how often each is drawn: {a} is a phrase with its article, {word} the bare word.
FORMS = (("{a}", 0.55), ("{word}", 0.20), ("a photo of {a}", 0.15), ("{a} in a photograph", 0.10))
# Where flat drawings are taught as well: a caption that names no style is mostly of a rendered thing.
RENDERED = (*((form, 0.9 * share) for form, share in FORMS), ("a 3d render of {a}", 0.10))
DRAWN = (("a flat drawing of {a}", 0.84), ("{a}", 0.10), ("{word}", 0.06))
EMPTY_SCENE = (("", 0.6), ("background", 0.2), ("an empty scene", 0.2))

Forms = tuple[tuple[str, float], ...]


def styles(*, flat: bool) -> tuple[Forms, ...]:
    """The caption forms of each style that is taught: of rendered things, and of drawn ones where `flat`."""
    return (RENDERED, DRAWN) if flat else (FORMS,)


def captions(name: Name, keywords: tuple[str, ...] = (), forms: Forms = FORMS) -> list[tuple[str, float]]:
    """Every caption of `name` with its probability; the name itself has 85 %, other words the rest."""
    words = [(name.name, 0.85)]
    others = dict.fromkeys((*name.also, *keywords))
    words += [(word, 0.15 / len(others)) for word in others] if others else []
    total = sum(weight for _, weight in words)
    return _spelled(name, [(word, weight / total) for word, weight in words], forms)


def coloured(name: Name, colour: str, forms: Forms = FORMS) -> list[tuple[str, float]]:
    """Every caption of `name` in a colour ("a blue guitar") with its probability."""
    return _spelled(name, [(f"{colour} {name.name}", 1.0)], forms)


def _spelled(name: Name, words: list[tuple[str, float]], forms: Forms) -> list[tuple[str, float]]:
    return [
        (form.format(a=name.phrase(word), word=word), share * weight)
        for word, weight in words
        for form, share in forms
    ]
