"""From a model's name to a model: the bundled one, a folder, a single file, or a repository of the hub."""

import importlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bld.errors import InvalidInput, ModelUnavailable
from bld.models.base import LatentModel
from bld.models.known import KNOWN, known
from bld.models.memory import check_memory, enough_memory
from bld.models.weights import check_whole
from bld.options import DType, LoadOptions, either

BUNDLED = Path(__file__).parent
BUNDLED_NAMES = ("mini",)

# Files of a hub repository that tell how a model is built, and its tokenizers: all that a single file lacks.
CONFIGURATION = ("*.json", "*.txt", "*.model")

# Of LoadOptions what says where a model is, and not what it gives.
PLACE = ("device", "offload", "allow_pickle")

SECOND_COPIES = ("*.fp16.*", "*non_ema*")  # of the weights

# Which family loads the folder of a diffusers pipeline.
FAMILIES = {
    "StableDiffusionPipeline": ("unet", "UNetModel"),
    "LatentConsistencyModelPipeline": ("unet", "UNetModel"),
    "LDMTextToImagePipeline": ("ldm", "LatentDiffusion"),
    "StableDiffusionXLPipeline": ("sdxl", "StableDiffusionXL"),
    "StableDiffusion3Pipeline": ("sd3", "StableDiffusion3"),
    "FluxPipeline": ("flux", "Flux"),
    "Flux2KleinPipeline": ("flux2", "Flux2Klein"),
    "ZImagePipeline": ("zimage", "ZImage"),
}


@enough_memory()
def load_model(
    name: str | Path, options: LoadOptions | None = None, *, weights: bool = True, **changes: Any
) -> LatentModel:
    """Load a model by alias ("mini", "sdxl"), path of a diffusers folder or a single file, or hub id.

    Options come as a `LoadOptions` or one by one (device="cpu", ...). device: "auto" (a GPU if there is
    one), "cpu", "cuda", "cuda:1", "mps". dtype: "auto" is float32 on a CPU and elsewhere the half precision
    that the family takes. weights: without them a model only says how much of a prompt it reads (`excess`);
    what is in a single file, or has something added to it, is loaded whole all the same. Raises
    ModelUnavailable with what is wrong and what would be right.
    """
    from bld.models.adapt import adapt
    from bld.models.family import read_index
    from bld.models.single import SingleFile

    options, name = either(LoadOptions, options, changes), str(name)
    where = pick_device(options.device)
    precision = pick_dtype(options.dtype, where)
    if options.offload and where.type == "cpu":
        raise InvalidInput("--offload spares the memory of a GPU, and this runs on the CPU: leave it out")
    rests = torch.device("cpu") if options.offload else where
    single = None
    if is_single(name):
        single = SingleFile(Path(name).expanduser(), precision, rests, pickles=options.allow_pickle)
        folder = find(options.config or single.config, CONFIGURATION)
    elif options.config:
        raise InvalidInput(f"--config {options.config}: for a model in a single file, and {name} is none")
    else:
        folder = find(name, pickles=options.allow_pickle)
    family = family_of(folder, read_index(folder)["_class_name"])
    if options.dtype == "auto" and where.type != "cpu":
        precision = family.half
    added = options.vae or options.lora or options.textual_inversion
    weights = weights or single is not None or bool(added)
    if not single and weights:
        files = [file for part in family.parts for file in own_weights(folder / part)]
        check_memory(folder, files, precision, rests)
    model = family(
        folder,
        name=name,
        device=where,
        rests=rests,
        dtype=precision,
        pickles=options.allow_pickle,
        single=single,
        weights=weights,
    )
    facts = known(name)
    if facts and facts.steps and facts.guidance_scale:  # a distilled model whose folder does not tell
        model.steps, model.guidance_scale = facts.steps, facts.guidance_scale
    adapt(model, options)
    loaded: LatentModel = model
    return loaded


def is_single(name: str) -> bool:
    """Whether a model's name is that of a single file."""
    return name not in BUNDLED_NAMES and Path(name).expanduser().is_file()


def family_of(folder: Path, pipeline: str) -> Any:
    """The class that loads the folder of a pipeline. Raises ModelUnavailable if there is none."""
    if pipeline not in FAMILIES:
        other = pipeline.endswith(("InpaintPipeline", "FillPipeline"))
        raise ModelUnavailable(
            f"{folder}: made for {pipeline}{', an inpainting model, which is not for blending' * other}; "
            f"what loads is made for {', '.join(FAMILIES)}"
        )
    module, name = FAMILIES[pipeline]
    return getattr(importlib.import_module(f"bld.models.{module}"), name)


def find(name: str, files: Sequence[str] = (), *, pickles: bool = False) -> Path:
    """The folder of a model; downloads a hub repository unless HF_HUB_OFFLINE says not to.

    files: patterns of what is downloaded, if not a diffusers pipeline. Second copies of the weights never
    are, and pickled ones only if `pickles` says so and there are no others.
    """
    if name in BUNDLED_NAMES:
        return BUNDLED / name
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if known(name):
        return fetch(name, files, pickles=pickles)
    if path.exists():
        raise ModelUnavailable(f"{name}: a file; give a diffusers folder or a hub id")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelUnavailable(
            f"unknown model {name}: give an alias ({', '.join(model.alias for model in KNOWN)}), "
            "the folder of a diffusers model, a single .safetensors file, or a hub id such as owner/name"
        )
    return fetch(name, files, pickles=pickles)


def fetch(name: str, files: Sequence[str] = (), *, pickles: bool = False) -> Path:
    """Download a pipeline by alias or hub id: its index, and then the parts that its family takes.

    files: what to download instead, if it is no pipeline. Files that the cache has are not downloaded again.
    Raises ModelUnavailable with what to do about it.
    """
    from bld.models.family import read_index

    facts = known(name)
    id = facts.id if facts else name
    if files:
        return _download(id, files, pickles=pickles)
    folder = _download(id, ["model_index.json"])
    family = family_of(folder, read_index(folder)["_class_name"])
    folder = _download(id, ["model_index.json", *(f"{part}/*" for part in (*family.parts, "ranker"))])
    for file in sorted(folder.rglob("*.safetensors")):
        check_whole(file)
    bare = [part for part in family.parts if not part.startswith("tokenizer") and is_bare(folder / part)]
    if bare and not pickles:
        raise ModelUnavailable(
            f"model {id}: its {' and '.join(bare)} has no weights but pickled ones, and reading them may "
            "run code; --allow-pickle has torch read the weights and nothing else"
        )
    return _download(id, [f"{part}/*.bin" for part in bare], pickles=True) if bare else folder


def own_weights(part: Path) -> list[Path]:
    """The weights of a part, without the second copies that some folders have beside them."""
    return [file for file in part.glob("*.safetensors") if not any(map(file.match, SECOND_COPIES))]


def is_bare(part: Path) -> bool:
    """Whether a downloaded part is a network without weights."""
    return (part / "config.json").is_file() and not any(part.glob("*.safetensors"))


def _download(id: str, files: Sequence[str], *, pickles: bool = False) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub import errors as hub

    unwanted = ["*.ckpt", "*.msgpack", *SECOND_COPIES, *([] if pickles else ["*.bin"])]
    page = f"{constants.ENDPOINT}/{id}"
    try:
        return Path(snapshot_download(id, allow_patterns=list(files), ignore_patterns=unwanted))
    except hub.GatedRepoError as error:
        raise ModelUnavailable(
            f"model {id}: its owners want to be asked first: accept their terms at {page}, then run "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise ModelUnavailable(
            f"model {id}: no folder of that name, and no repository at {page}; check the name, or set "
            "HF_TOKEN if it is private"
        ) from error
    except (hub.HfHubHTTPError, hub.HFValidationError, hub.LocalEntryNotFoundError, OSError) as error:
        raise ModelUnavailable(
            f"model {id}: no folder of that name, not in the cache ({constants.HF_HUB_CACHE}), and the hub "
            f"does not answer ({type(error).__name__}): check the name and HF_HUB_OFFLINE; where there is a "
            f"network, run: bld models fetch {id}{' --config-only' * (tuple(files) == CONFIGURATION)}"
        ) from error
    except Exception as error:  # of the HTTP library, which goes by the hub's version
        raise ModelUnavailable(
            f"model {id}: the download broke off ({type(error).__name__}): run it again; files that are "
            "whole are not downloaded again"
        ) from error


def pick_device(device: str) -> torch.device:
    """The device of a name. Raises InvalidInput if it does not exist here."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()  # "meta" has no numbers to give
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InvalidInput(f"--device {device}: not usable here ({reason}); try --device cpu") from error
    return found


def lasting(loading: LoadOptions) -> dict[str, Any]:
    """Of how a model is loaded, what its pictures depend on."""
    kept = {name: value for name, value in asdict(loading).items() if name not in PLACE}
    if loading.dtype == "auto":  # float32 on a CPU, half precision elsewhere
        kept["dtype"] = f"auto on {pick_device(loading.device).type}"
    return kept


def pick_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """The precision of a name; float16 is refused on a CPU, where it is slow and incomplete."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if dtype == "float16" and device.type == "cpu":
        raise InvalidInput("--dtype float16 on a CPU: use float32 or bfloat16")
    precisions = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in precisions:
        raise InvalidInput(f"--dtype {dtype}: choose one of auto, {', '.join(precisions)}")
    return precisions[dtype]
