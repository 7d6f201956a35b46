"""How an edit was made, as facts: in edit.json, in every PNG, and back as a command."""

import dataclasses
import hashlib
import json
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bld.editor import EditResult
from bld.errors import InvalidInput
from bld.images import read_text_chunks
from bld.options import FIELDS, flag

TEXT_KEY = "bld"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the command line was given beside the options: paths as typed, and where to run."""

    image: str
    mask: str
    device: str
    dtype: str


def record(result: EditResult, inputs: Inputs) -> dict[str, Any]:
    """Everything about an edit that fits in JSON: the request with every choice made, and what came of it."""
    return {
        "format": FORMAT,
        "request": {
            "image": inputs.image,
            "mask": inputs.mask,
            "prompt": result.prompt,
            "model": result.model,
            "device": inputs.device,
            "dtype": inputs.dtype,
            **dataclasses.asdict(result.options),
        },
        "inputs_sha256": {"image": _sha256(inputs.image), "mask": _sha256(inputs.mask)},
        "model": {"name": result.model, "revision": result.revision},
        "crop": {"box": list(result.crop.box), "size": list(result.crop.size)},
        "candidates": [
            {
                "file": f"candidates/{i:02d}.png",
                "seed": candidate.seed,
                "background_max_error": candidate.background.max,
                "background_psnr": candidate.background.psnr,
            }
            for i, candidate in enumerate(result.candidates)
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


def text_chunk(facts: dict[str, Any], number: int) -> dict[str, str]:
    """The PNG text of candidate `number`. Timings stay out, so that a rerun gives the same bytes."""
    kept = {key: value for key, value in facts.items() if key not in ("seconds", "candidates")}
    kept["candidate"] = {"number": number, **facts["candidates"][number]}
    return {TEXT_KEY: json.dumps(kept, ensure_ascii=False)}


def read(picture: Path) -> dict[str, Any]:
    """The facts in a picture that bld wrote. Raises InvalidInput for any other file."""
    if not picture.is_file():
        raise InvalidInput(f"{picture}: no such file")
    text = read_text_chunks(picture).get(TEXT_KEY)
    if text is None:
        raise InvalidInput(
            f"{picture} does not say how it was made: not a PNG that bld wrote, or written with --no-metadata"
        )
    facts: dict[str, Any] = json.loads(text)
    return facts


def command(facts: dict[str, Any]) -> str:
    """The command line that makes the edit again. Every open choice is spelled out."""
    request = facts["request"]
    words = ["bld", "edit"]
    for name in ("image", "mask", "prompt", "model", "device", "dtype"):
        words += [flag(name), str(request[name])]
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
    for what, digest in facts["inputs_sha256"].items():
        path = facts["request"][what]
        if not Path(path).is_file():
            lines.append(f"{what} {path} is not there")
        elif _sha256(path) != digest:
            lines.append(f"{what} {path} has changed since")
    return lines


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
