"""What every family shares: its parts, loaded with care, its autoencoder, and classifier-free guidance."""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import torch

from bld.errors import BldError, ModelUnavailable
from bld.models.base import Prompts, Trajectory
from bld.models.networks import empty_network, loading, whole_network
from bld.models.single import SingleFile
from bld.models.trajectory import start
from bld.models.weights import fingerprint
from bld.options import EditOptions

REMEMBERED = 8  # prompts

Condition = dict[str, torch.Tensor]
"""What the network is told of a prompt, by name, 1 ... each."""

Predict = Callable[[torch.Tensor, float], torch.Tensor]
"""The network's output, guided, for z (n c h w) at a timestep."""


class Family(ABC):
    """A LatentModel made of the parts of one diffusers pipeline, whose own code reads the prompts."""

    pipeline: ClassVar[str]  # the diffusers class
    parts: ClassVar[Mapping[str, str]]  # name of each part and its class
    optional: ClassVar[tuple[str, ...]] = ()  # of the parts, those that a folder may lack
    beside: ClassVar[Mapping[str, Any]] = {}  # what the pipeline wants beside its parts
    half: ClassVar[torch.dtype] = torch.float16  # the precision it runs in on a GPU
    guidance_scale: float
    steps = 50
    max_aspect = 4
    whole = True
    multiple: int
    native_size: int
    scheduler: dict[str, Any]  # its configuration

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        device: torch.device,
        rests: torch.device,
        dtype: torch.dtype,
        pickles: bool = False,
        single: SingleFile | None = None,
        weights: bool = True,
    ) -> None:
        """Load the parts. Raises ModelUnavailable if one is missing, of another class, or not whole.

        device: where it runs; rests: where its parts are until then, another device if they are offloaded.
        pickles: whether weights may be read from a pickle where there are no others. single: where the
        weights are instead of in the folder. weights: without, nothing can be computed, and prompts be read.
        """
        self.index = check_layout(folder, self.parts, self.optional)
        self.reading = Lock()  # a tokenizer remembers how the last call had it pad and cut
        self.name, self.device, self.rests, self.dtype = name, device, rests, dtype
        here = [part for part in self.parts if (folder / part).is_dir()]
        self.revision = single.revision if single else fingerprint(folder, here)
        for part, kind in self.parts.items():
            if part not in here:
                setattr(self, part, None)
            elif weights:
                setattr(self, part, self._load(folder, part, kind, pickles, single))
            else:
                setattr(self, part, self._bare(folder, part, kind))
        self.vae: Any = getattr(self, "vqvae", None) or self.vae  # as the first pipeline of all calls it
        self.latent_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)

    @staticmethod
    def _bare(folder: Path, part: str, kind: str) -> Any:
        """What a part is without weights: all there is to a scheduler and a tokenizer."""
        if part == "scheduler":
            with loading(folder, part):
                return _class(kind).load_config(folder / part)
        if part.startswith("tokenizer"):
            with loading(folder, part):
                return _class(kind).from_pretrained(folder / part)
        return empty_network(folder, part, _class(kind))

    def _load(self, folder: Path, part: str, kind: str, pickles: bool, single: SingleFile | None) -> Any:
        if part == "scheduler" or part.startswith("tokenizer"):
            return self._bare(folder, part, kind)
        if single:
            loaded = single.network(folder, part, _class(kind), self.dtype)
        else:
            loaded = whole_network(folder, part, _class(kind), self.dtype, pickles=pickles)
        if self.dtype == torch.float16 and getattr(loaded.config, "force_upcast", False):
            loaded = loaded.float()  # an autoencoder that overflows in half precision, as SDXL's first does
        return loaded.to(self.rests)

    @cached_property
    def pipe(self) -> Any:
        """The diffusers pipeline of these parts."""
        scheduler = _class(self.parts["scheduler"]).from_config(self.scheduler)
        parts = {part: getattr(self, part) for part in self.parts if part != "scheduler"}
        parts |= {part: self.vae for part in ("vae", "vqvae") if part in parts}  # it may have been replaced
        return _class(self.pipeline)(scheduler=scheduler, **parts, **self.beside)

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """E(x), the posterior's mean: b 3 h w in [-1, 1] to b c h/f w/f."""
        z = self.vae.encode(image.to(self.device, self.vae.dtype)).latent_dist.mode()
        return self.scaled(z.float())

    @torch.no_grad()
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """D(z): b c h w to b 3 fh fw, about [-1, 1]. Raises BldError for what would be a black picture."""
        image: torch.Tensor = self.vae.decode(self.unscaled(z.to(self.device)).to(self.vae.dtype)).sample
        if not bool(torch.isfinite(image).all()):
            mend = "its weights may be damaged" if self.dtype == torch.float32 else "use --dtype float32"
            ran = str(self.dtype).removeprefix("torch.")
            raise BldError(f"{self.name} gave values that are not numbers, in {ran}: {mend}")
        return image.float()

    def decoder(self) -> torch.nn.Sequential:
        """A copy of D in float32, on the model's device, as the chain of its blocks, free to be tuned."""
        first, d = copy.deepcopy((self.vae.post_quant_conv, self.vae.decoder))
        last = torch.nn.Sequential(d.conv_norm_out, d.conv_act, d.conv_out)
        blocks = [part for part in (first, d.conv_in, d.mid_block, *d.up_blocks, last) if part is not None]
        return torch.nn.Sequential(Unscaled(self), *blocks).float().to(self.device).requires_grad_(True)

    def scaled(self, z: torch.Tensor) -> torch.Tensor:
        """The autoencoder's latents as the network knows them, of about unit variance."""
        config = self.vae.config
        unit: torch.Tensor = (z - (config.get("shift_factor") or 0)) * config.scaling_factor
        return unit

    def unscaled(self, z: torch.Tensor) -> torch.Tensor:
        """The inverse of `scaled`."""
        config = self.vae.config
        raw: torch.Tensor = z / config.scaling_factor + (config.get("shift_factor") or 0)
        return raw

    @cached_property
    def conditions(self) -> Callable[[str, tuple[int, int]], Condition]:
        """`condition`, which remembers the last prompts: a text encoder reads each once."""
        return self._remembered(self.condition)

    @cached_property
    def nulls(self) -> Callable[[str, tuple[int, int]], Condition]:
        """`null`, likewise."""
        return self._remembered(self.null)

    def _remembered(
        self, read: Callable[[str, tuple[int, int]], Condition]
    ) -> Callable[[str, tuple[int, int]], Condition]:
        @lru_cache(maxsize=REMEMBERED)
        def alone(prompt: str, size: tuple[int, int]) -> Condition:
            with self.reading:
                return read(prompt, size)

        return alone

    def excess(self, prompt: str) -> str:
        """The words that no text encoder would read; "" if there are none."""
        with self.reading:
            return self.unread(prompt)

    @abstractmethod
    def unread(self, prompt: str) -> str:
        """See `excess`, which one thread at a time comes through."""

    @abstractmethod
    def condition(self, prompt: str, size: tuple[int, int]) -> Condition:
        """What the network is told of a prompt for pictures of a size, h w in pixels."""

    def null(self, negative_prompt: str, size: tuple[int, int]) -> Condition:
        """What guidance leads away from."""
        return self.condition(negative_prompt, size)

    @abstractmethod
    def network(self, z: torch.Tensor, timestep: float, condition: Condition) -> torch.Tensor:
        """One pass of the network over n latents, each with its row of the condition; float32."""

    @abstractmethod
    def trajectory(self, prompt: Prompts, options: EditOptions, grid: tuple[int, int]) -> Trajectory:
        """See `LatentModel.trajectory`."""

    def told(self, scale: float) -> Condition | None:
        """What a network that takes the guidance scale as an input is told; None: guidance runs it twice."""
        return None

    def guides(self, options: EditOptions) -> bool:
        """See `LatentModel.guides`."""
        scale, steps = options.guidance_scale, options.steps
        if scale is None or steps is None:
            raise ValueError("options must be resolved")
        run = range(start(steps, options.strength), steps)
        return scale != 1 and self.told(scale) is None and bool(run[_guided_part(options, len(run))])

    def _conditions(self, prompt: Prompts, size: tuple[int, int]) -> Condition:
        """A row for the prompt that all latents share, or a row for each prompt."""
        if isinstance(prompt, str):
            return self.conditions(prompt, size)
        told = {one: self.conditions(one, size) for one in dict.fromkeys(prompt)}
        return {key: torch.cat([told[one][key] for one in prompt]) for key in told[prompt[0]]}

    @torch.no_grad()
    def guided(
        self, prompt: Prompts, options: EditOptions, grid: tuple[int, int], timesteps: Sequence[float]
    ) -> Predict:
        """Classifier-free guidance (Ho and Salimans 2022); one pass where the scale is 1 or told, or outside
        the part of the timesteps that the options name (Kynkäänniemi et al. 2024).
        """
        scale = options.guidance_scale
        if scale is None:
            raise ValueError("options must be resolved")
        size = (grid[0] * self.latent_factor, grid[1] * self.latent_factor)
        told = self.told(scale)
        d = {**self._conditions(prompt, size), **(told or {})}
        within = frozenset(timesteps[_guided_part(options, len(timesteps))])
        null = self.nulls(options.negative_prompt, size) if self.guides(options) else None

        def rows(condition: Condition, n: int) -> Condition:
            return {key: value.expand(n, *value.shape[1:]) for key, value in condition.items()}

        @torch.no_grad()
        def predict(z: torch.Tensor, timestep: float) -> torch.Tensor:
            z, n = z.to(self.device, self.dtype), len(z)
            if null is None or timestep not in within:
                return self.network(z, timestep, rows(d, n))
            both = {key: torch.cat([rows(null, n)[key], row]) for key, row in rows(d, n).items()}
            without, prompted = self.network(torch.cat([z, z]), timestep, both).chunk(2)
            return without + scale * (prompted - without)

        return predict


def _guided_part(options: EditOptions, steps: int) -> slice:
    """Which of the steps guidance acts in."""
    return slice(*(int(share * steps + 0.5) for share in (options.guidance_start, options.guidance_end)))


def cut(tokenizer: Any, prompt: str, limit: int) -> str:
    """What a tokenizer of `limit` tokens, one of them the end, leaves of a prompt unread."""
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    return str(tokenizer.decode(ids[limit - 1 : -1])) if len(ids) > limit else ""


class Unscaled(torch.nn.Module):
    """`Family.unscaled` as the first block of a decoder, on the model's device."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """b c h w, likewise."""
        return self.family.unscaled(z.to(self.family.device))


def _class(name: str) -> Any:
    """A class of diffusers or transformers by its name."""
    import diffusers
    import transformers
    from diffusers.pipelines import latent_diffusion  # which keeps its text encoder to itself

    for library in (diffusers, transformers, latent_diffusion):
        if hasattr(library, name):
            return getattr(library, name)
    raise ModelUnavailable(f"neither diffusers nor transformers has a {name}; install the versions of bld")


def check_layout(folder: Path, parts: Mapping[str, str], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """The folder's model_index.json, after a look that every part is there and of its class."""
    index = read_index(folder)
    missing = [part for part in parts if not (folder / part).is_dir() and part not in optional]
    if missing:
        raise ModelUnavailable(
            f"{folder}: its {' and '.join(missing)} is missing; this model has {', '.join(parts)}"
        )
    for part, kind in parts.items():
        said = index.get(part) or [None, None]
        if part != "scheduler" and said[1] is not None and _bare(said[1]) != _bare(kind):
            raise ModelUnavailable(f"{folder}: its {part} is a {said[1]}, expected a {kind}")
    return index


def _bare(name: str) -> str:
    """A class name without what older and newer versions of the libraries add to it."""
    return name.removeprefix("Open").removesuffix("Fast")


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a diffusers folder. Raises ModelUnavailable if it is none."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelUnavailable(f"{folder}: no model_index.json, so not a diffusers model folder")
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(index["_class_name"], str):
            raise ValueError("no name")
    except (ValueError, LookupError, TypeError) as error:
        raise ModelUnavailable(f"{folder}: its model_index.json does not name its pipeline") from error
    return index
