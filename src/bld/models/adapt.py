"""What a user adds to a model: another autoencoder, LoRA weights, learnt words.

All of it is done once, when the model is loaded: LoRA weights are added to the model's own, so an edit takes
no longer with them, and two edits may still run at once.
"""

import hashlib
import math
import shutil
from pathlib import Path

from bld.errors import InvalidInput, MissingExtra, ModelUnavailable
from bld.models.family import Family
from bld.models.load import find, is_bare
from bld.models.networks import whole_network
from bld.models.weights import check_whole, fingerprint
from bld.options import LoadOptions

DOWN = (
    "lora_A.weight",
    "lora_down.weight",
    "lora.down.weight",
    "lora_linear_layer.down.weight",
)  # one a layer


def adapt(model: Family, options: LoadOptions) -> None:
    """Change a freshly loaded model as the options say; its revision then names the changes too.

    Raises InvalidInput for a file that is not there, is none of the kind, or does not fit the model, and
    MissingExtra where it takes a library that is not installed.
    """
    added = []
    if options.vae:
        added.append(replace_vae(model, options.vae, pickles=options.allow_pickle))
    for text in options.lora:
        added.append(add_lora(model, *scaled(text)))
    for text in options.textual_inversion:
        added.append(add_word(model, Path(text)))
    if options.vae_tiling:
        model.vae.enable_tiling()
    if options.offload:
        offload(model)
    if options.compile:
        compile_network(model)
    if added:
        digest = hashlib.sha256(" ".join([model.revision, *added]).encode())
        model.revision = digest.hexdigest()[:12]


def offload(model: Family) -> None:
    """Have each network on the model's device while it runs, and on the CPU before and after."""
    try:
        model.pipe.enable_model_cpu_offload(device=model.device)
    except ImportError as error:
        raise MissingExtra(
            "--offload needs accelerate: pip install 'blended-latent-diffusion[offload]'"
        ) from error


def compile_network(model: Family) -> None:
    """Have torch compile the network of the steps when it first runs.

    Raises InvalidInput on a CPU without the C++ compiler that this takes.
    """
    if model.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
        raise InvalidInput(
            "--compile on a CPU takes a C++ compiler, such as g++: install it, or leave it out"
        )
    (network,) = {"unet", "transformer"} & set(model.parts)
    getattr(model, network).compile()


def replace_vae(model: Family, name: str, *, pickles: bool = False) -> str:
    """Give the model another autoencoder; returns the digest of its weights."""
    folder = find(name, ("config.json", "*.safetensors"))
    if pickles and is_bare(folder):
        folder = find(name, ("*.bin",), pickles=True)
    vae = whole_network(folder, ".", type(model.vae), model.vae.dtype, pickles=pickles).to(model.rests)
    shapes = [(part.config.latent_channels, len(part.config.block_out_channels)) for part in (model.vae, vae)]
    if shapes[0] != shapes[1]:
        raise InvalidInput(
            f"--vae {name}: {shapes[1][0]} latent channels at 1/{2 ** (shapes[1][1] - 1)} of the size, and "
            f"{model.name} has {shapes[0][0]} at 1/{2 ** (shapes[0][1] - 1)}: give one made for this family"
        )
    model.vae = vae
    return fingerprint(folder)


def scaled(text: str) -> tuple[Path, float]:
    """PATH:SCALE apart; a path alone has scale 1."""
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        times = float(scale)
    except ValueError:
        times = math.nan
    if not math.isfinite(times):
        raise InvalidInput(f"--lora {text}: expected PATH or PATH:SCALE with a number, as in x:0.8")
    return Path(path), times


def add_lora(model: Family, file: Path, scale: float) -> str:
    """Add LoRA weights (Hu et al. 2021), times scale, to the model's own; returns a digest."""
    digest = read(file, "--lora")
    if not hasattr(model.pipe, "load_lora_weights"):
        raise InvalidInput(f"--lora {file}: {model.pipeline} takes no LoRA weights")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingExtra("--lora needs peft: pip install 'blended-latent-diffusion[lora]'") from error
    try:
        model.pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="added")
        taken = [part for part, names in model.pipe.get_list_adapters().items() if "added" in names]
        if not taken:
            raise ValueError("nothing in it belongs to this model")
        refuse_unplaced(model, file, taken)
        model.pipe.fuse_lora(components=taken, lora_scale=scale, adapter_names=["added"])
    except Exception as error:  # KeyError, ValueError, RuntimeError: by family and file
        reason = str(error).partition("\n")[0].strip() or type(error).__name__
        raise InvalidInput(f"--lora {file}: does not fit {model.name} ({reason})") from error
    model.pipe.unload_lora_weights()
    for part in taken:
        getattr(model, part).eval().requires_grad_(False)
    return f"{digest}:{scale:g}"


def refuse_unplaced(model: Family, file: Path, taken: list[str]) -> None:
    """Raise ValueError for LoRA weights of layers that the model lacks, which diffusers leaves out."""
    found = model.pipe.lora_state_dict(file.parent, weight_name=file.name)
    names = found[0] if isinstance(found, tuple) else found
    layers = sum(name.endswith(DOWN) for name in names)
    placed = sum(
        "added" in getattr(layer, "lora_A", ()) for part in taken for layer in getattr(model, part).modules()
    )
    if placed < layers:
        raise ValueError(f"{layers - placed} of its {layers} layers are none of this model's")


def add_word(model: Family, file: Path) -> str:
    """Teach the tokenizer a learnt word (Gal et al. 2022), the file's name; returns a digest."""
    digest = read(file, "--textual-inversion")
    if not hasattr(model, "learn_word"):
        raise InvalidInput(f"--textual-inversion {file}: only Stable Diffusion 1 and 2 take learnt words")
    try:
        model.learn_word(file)
    except Exception as error:  # ValueError, RuntimeError: of another width, a word that it has
        reason = str(error).partition("\n")[0].strip() or type(error).__name__
        raise InvalidInput(f"--textual-inversion {file}: does not fit {model.name} ({reason})") from error
    return digest


def read(file: Path, what: str) -> str:
    """A digest of a safetensors file. Raises InvalidInput for any other, and if it is not there."""
    if not file.is_file():
        raise InvalidInput(f"{what} {file}: no such file; give a .safetensors file")
    if file.suffix != ".safetensors":
        raise InvalidInput(f"{what} {file}: expected a .safetensors file; others may run code when read")
    try:
        check_whole(file)
    except ModelUnavailable as error:
        raise InvalidInput(f"{what} {error}") from error
    return hashlib.sha256(file.read_bytes()).hexdigest()
