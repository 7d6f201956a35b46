"""How an edit was made, as facts: in edit.json, in every PNG, and back as a command."""

import dataclasses
import hashlib
import json
import math
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bld.editor import EditResult
from bld.errors import InvalidInput
from bld.images import read_text_chunks
from bld.options import FIELDS, LOADING, EditOptions, LoadOptions, flag

TEXT_KEY = "bld"
FORMAT = 1

# What readers of a record rely on, and of what kinds it is.
NAMED = {"name": str, "revision": str}
EDIT = {
    "request": {
        **dict.fromkeys(("image", "mask", "prompt", "model", "device", "dtype"), str), "candidates": int,
    },
    "inputs_sha256": {"image": str, "mask": str},
    "model": NAMED,
    "notes": list,
}  # fmt: skip
CANDIDATE = {"number": int, "seed": int, "background_max_error": int | float}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the command line was given beside the options: paths as typed, and where to run.

    sha256: of image and mask as they were read; if left out, of the files as they are by then.
    """

    image: str
    mask: str
    loading: LoadOptions
    ranker: str
    sha256: tuple[str | None, str | None] = (None, None)


def record(result: EditResult, inputs: Inputs, numbers: Sequence[int] | None = None) -> dict[str, Any]:
    """Everything about an edit that fits in JSON: the request with every choice made, and what came of it.

    numbers: where the candidates stood in the edit that the request makes, if not in this order.
    """
    return {
        "format": FORMAT,
        "request": requested(inputs, result.prompt, result.model, result.options),
        "inputs_sha256": {
            "image": inputs.sha256[0] or _sha256(inputs.image),
            "mask": inputs.sha256[1] or _sha256(inputs.mask),
        },
        "model": {"name": result.model, "revision": result.revision},
        "ranker": {"name": result.ranker, "revision": result.ranker_revision} if result.ranker else None,
        "crop": {"box": list(result.crop.box), "size": list(result.crop.size)},
        "candidates": [
            {
                "file": f"candidates/{i:02d}.png",
                "number": i if numbers is None else numbers[i],
                "seed": candidate.seed,
                "score": _finite(candidate.score),
                "reconstruction": candidate.reconstruction,
                "background_max_error": candidate.fidelity.max_error,
                "background_psnr": candidate.fidelity.psnr,
                "background_ssim": candidate.fidelity.ssim,
                "seam": candidate.fidelity.seam,
            }
            for i, candidate in enumerate(result.candidates)
        ],
        "dropped": [
            {"seed": one.seed, "step": one.step, "score": _finite(one.score)} for one in result.dropped
        ],
        "notes": list(result.notes),
        "seconds": {stage: round(seconds, 3) for stage, seconds in result.seconds.items()},
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("blended-latent-diffusion", "torch", "diffusers", "transformers")
            },
        },
    }


def requested(inputs: Inputs, prompt: str, model: str, options: EditOptions) -> dict[str, Any]:
    """What was asked for."""
    return {
        "image": inputs.image,
        "mask": inputs.mask,
        "prompt": prompt,
        "model": model,
        **dataclasses.asdict(inputs.loading),
        "ranker": inputs.ranker,
        **dataclasses.asdict(options),
    }


def text_chunk(facts: dict[str, Any], number: int) -> dict[str, str]:
    """The PNG text of one candidate. Timings stay out, so that a rerun gives the same bytes."""
    kept = {key: value for key, value in facts.items() if key not in ("seconds", "candidates")}
    kept["candidate"] = facts["candidates"][number]
    return {TEXT_KEY: json.dumps(kept)}


def read(picture: Path) -> dict[str, Any]:
    """The facts in a picture that bld wrote. Raises InvalidInput for any other file."""
    if not picture.is_file():
        raise InvalidInput(f"{picture}: no such file")
    text = read_text_chunks(picture).get(TEXT_KEY)
    if text is None:
        raise InvalidInput(
            f"{picture} does not say how it was made: not a PNG that bld wrote, or written with --no-metadata"
        )
    try:
        facts: dict[str, Any] = json.loads(text)
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}, this version reads {FORMAT}")
        _check(facts, {"candidate": CANDIDATE})
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{picture}: what it says of itself cannot be read ({error})") from error
    return facts


def read_folder(folder: Path) -> dict[str, Any]:
    """The facts in the edit.json of an output folder. Raises InvalidInput if there are none."""
    path = folder / "edit.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _check(facts, {"candidates": list})
        if not facts["candidates"]:
            raise ValueError("candidates is empty")
        for candidate in facts["candidates"]:
            _refuse_incomplete(candidate, {**CANDIDATE, "score": int | float | None}, "candidates.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{path}: not the record of an edit ({error}); give the output folder of bld edit"
        ) from error
    return facts


def _check(facts: dict[str, Any], more: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError unless it is an edit's record, with `more` in it."""
    request(facts)
    loading(facts)
    _refuse_incomplete(facts, {**EDIT, **more, **({"ranker": NAMED} if facts.get("ranker") else {})})


def _refuse_incomplete(facts: Any, expected: dict[str, Any], within: str = "") -> None:
    """Raise ValueError for the first key that is missing or of another kind."""
    for key, kind in expected.items():
        if not isinstance(facts, dict) or key not in facts:
            raise ValueError(f"{within}{key} is missing")
        if isinstance(kind, dict):
            _refuse_incomplete(facts[key], kind, f"{within}{key}.")
        elif not isinstance(facts[key], kind):
            raise ValueError(f"{within}{key} is of another kind than in a record")


def request(facts: dict[str, Any]) -> EditOptions:
    """The options that an edit ran with, as its record has them."""
    asked = facts["request"]
    return EditOptions(**{name: asked[name] for name in FIELDS if name in asked})


def loading(facts: dict[str, Any]) -> LoadOptions:
    """How an edit's model was loaded, as its record has it."""
    asked = facts["request"]
    return LoadOptions(**{name: asked[name] for name in LOADING if name in asked})


def command(facts: dict[str, Any]) -> str:
    """The command line that makes the edit again. Every open choice is spelled out."""
    request = facts["request"]
    words = ["bld", "edit"]
    for name in ("image", "mask", "prompt", "model", "device", "dtype"):
        words += [flag(name), str(request[name])]
    for name, value in dataclasses.asdict(loading(facts)).items():
        if name not in ("device", "dtype") and value != LOADING[name].default:
            given = value if isinstance(value, tuple) else (value,)
            words += [word for one in given for word in ([flag(name)] if one is True else [flag(name), one])]
    words += ["--ranker", request.get("ranker") or "none"]  # older versions ranked only when told to
    for name, option in FIELDS.items():
        value = request.get(name, option.default)
        if value == option.default:
            continue
        if isinstance(value, bool):
            words.append(flag(name) if value else "--no-" + name.replace("_", "-"))
        else:
            words += [flag(name), str(value)]
    return shlex.join(words)


def changed_inputs(facts: dict[str, Any]) -> list[str]:
    """Which of image and mask are no longer the files that the edit read, as one line each."""
    lines = []
    for what, before in facts["inputs_sha256"].items():
        path = facts["request"][what]
        if not Path(path).is_file():
            lines.append(f"{what} {path} is not there")
        elif _sha256(path) != before:
            lines.append(f"{what} {path} has changed since")
    return lines


def _finite(score: float | None) -> float | None:
    """JSON has no NaN: a score that is not a number is none."""
    return score if score is not None and math.isfinite(score) else None


def digest(content: bytes) -> str:
    """What a record says of a file's content."""
    return hashlib.sha256(content).hexdigest()


def _sha256(path: str) -> str:
    return digest(Path(path).read_bytes())
