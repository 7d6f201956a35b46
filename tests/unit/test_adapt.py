"""What is added to a model when it is loaded: LoRA weights, learnt words, another autoencoder."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bld import Editor
from bld.errors import BldError, InvalidInput, MissingExtra, ModelUnavailable
from bld.models.adapt import offload, scaled
from bld.models.load import load_model
from bld.models.unet import UNetModel
from bld.options import EditOptions, LoadOptions, resolve

PROMPT, GRID = "a red apple", (8, 8)


@pytest.fixture(scope="session")
def lora(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA weights for the tiny model's UNet and text encoder, as peft and diffusers save them."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = StableDiffusionPipeline.from_pretrained(tiny)
    layers = []
    for part, targets in ((pipeline.unet, ["to_q", "to_v"]), (pipeline.text_encoder, ["q_proj"])):
        part.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        weights = get_peft_model_state_dict(part)
        draws = torch.Generator().manual_seed(len(weights))
        layers.append({k: 0.2 * torch.randn(v.shape, generator=draws) for k, v in weights.items()})
    folder = tmp_path_factory.mktemp("lora")
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=layers[0],
        text_encoder_lora_layers=layers[1],
        weight_name="style.safetensors",
    )
    return folder / "style.safetensors"


def word(
    folder: Path, model: UNetModel, tokens: int = 1, width: int | None = None, name: str = "mycat"
) -> Path:
    """A learnt word of some tokens."""
    width = width or model.text_encoder.config.hidden_size
    vectors = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def sampled(model: UNetModel, prompt: str = PROMPT) -> torch.Tensor:
    asked = EditOptions(seed=0, steps=2, guidance_scale=3)
    options = resolve(asked, steps=1, guidance_scale=1, shrink=False, soft_mask=False, feather=0)
    z = torch.randn(1, 4, *GRID, generator=torch.Generator().manual_seed(1))
    for step in model.trajectory(prompt, options, GRID):
        z = step.denoise(z)
    return z


@pytest.fixture
def loaded(tiny: Path) -> Callable[..., UNetModel]:
    def load(**changes: object) -> UNetModel:
        model = load_model(str(tiny), device="cpu", **changes)
        assert isinstance(model, UNetModel)
        return model

    return load


def refused(load: Callable[..., UNetModel], **changes: object) -> str:
    with pytest.raises(InvalidInput) as caught:
        load(**changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- LoRA ---


def test_lora_weights_do_what_they_do_in_diffusers(
    loaded: Callable[..., UNetModel], tiny: Path, lora: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="style")
    pipeline.set_adapters(["style"], [0.7])
    model = loaded(lora=(f"{lora}:0.7",))
    ids = model.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    z = torch.randn(1, 4, *GRID, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        text = pipeline.text_encoder(ids).last_hidden_state
        expected = pipeline.unet(z, 500, text).sample
    torch.testing.assert_close(model.embed(PROMPT), text, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.network(z, 500, {"text": text}), expected, atol=1e-5, rtol=0)


def test_scale_0_is_none_and_two_add_up(loaded: Callable[..., UNetModel], lora: Path) -> None:
    plain, without, half, twice, whole = (
        loaded(lora=added)
        for added in ((), (f"{lora}:0",), (f"{lora}:0.5",), (f"{lora}:0.5",) * 2, (str(lora),))
    )
    torch.testing.assert_close(sampled(without), sampled(plain), atol=1e-5, rtol=0)
    assert (sampled(half) - sampled(plain)).abs().max() > 1e-2
    torch.testing.assert_close(sampled(twice), sampled(whole), atol=1e-3, rtol=0)
    assert len({model.revision for model in (plain, without, half, twice, whole)}) == 5
    assert not any(p.requires_grad for p in whole.unet.parameters())
    assert not whole.unet.training


def test_a_path_may_have_a_scale_or_a_colon(tmp_path: Path) -> None:
    assert scaled("style.safetensors:0.8") == (Path("style.safetensors"), 0.8)
    assert scaled("style.safetensors") == (Path("style.safetensors"), 1.0)
    odd = tmp_path / "a:1.safetensors"
    odd.write_bytes(b"")
    assert scaled(str(odd)) == (odd, 1.0)
    for scale in ("much", "nan", "inf", "1e999"):
        with pytest.raises(InvalidInput, match="expected PATH or PATH:SCALE"):
            scaled(f"style.safetensors:{scale}")


def test_lora_weights_of_another_model_are_refused(
    loaded: Callable[..., UNetModel], lora: Path, tmp_path: Path
) -> None:
    other = {key: value.repeat_interleave(2, -1) for key, value in load_file(lora).items()}
    save_file(other, tmp_path / "wide.safetensors")
    message = refused(loaded, lora=(str(tmp_path / "wide.safetensors"),))
    assert "does not fit" in message


# --- words ---


@pytest.mark.parametrize("name", ["mycat", "MyCat-2"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_learnt_word_is_its_vectors(
    loaded: Callable[..., UNetModel], tmp_path: Path, tokens: int, name: str
) -> None:
    """However it is written: the tokenizer reads small letters."""
    plain = loaded()
    file = word(tmp_path, plain, tokens, name=name)
    model = loaded(textual_inversion=(str(file),))
    for written in (name, name.lower()):
        spelled = model.spelled(f"a photo of {written}")
        ids = model.tokenizer(spelled)["input_ids"][1:-1]
        vectors = model.text_encoder.get_input_embeddings().weight[ids[-tokens:]]
        torch.testing.assert_close(vectors, load_file(file)["emb_params"])
    assert torch.equal(model.embed(PROMPT), plain.embed(PROMPT)), "other prompts are read as before"
    assert not torch.equal(model.embed(name), plain.embed(name))
    assert bool(model.excess("a " * 44 + f"{name} {name}")) == (tokens > 1), "46 tokens fit"
    assert model.revision != plain.revision


def test_of_learnt_words_the_longest_is_meant(loaded: Callable[..., UNetModel], tmp_path: Path) -> None:
    files = [str(word(tmp_path, loaded(), 2, name=name)) for name in ("my", "mycat")]
    assert loaded(textual_inversion=files).spelled("mycat, my") == "mycat mycat_1, my my_1"


def test_a_word_of_another_width_is_refused(loaded: Callable[..., UNetModel], tmp_path: Path) -> None:
    file = word(tmp_path, loaded(), width=7)
    assert "does not fit" in refused(loaded, textual_inversion=(str(file),))


# --- autoencoders ---


def test_another_autoencoder_encodes_and_decodes(
    loaded: Callable[..., UNetModel], tiny: Path, tmp_path: Path
) -> None:
    plain, folder = loaded(), shutil.copytree(tiny / "vae", tmp_path / "vae")
    weights = folder / "diffusion_pytorch_model.safetensors"
    save_file({k: v * 1.1 for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    model, x = loaded(vae=str(folder)), torch.rand(1, 3, 64, 64) * 2 - 1
    assert not torch.equal(model.encode(x), plain.encode(x))
    torch.testing.assert_close(sampled(model), sampled(plain))
    assert model.revision != plain.revision


def test_a_pickled_autoencoder_is_read_if_that_is_allowed(
    loaded: Callable[..., UNetModel], tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny / "vae", tmp_path / "vae")
    weights = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ModelUnavailable, match=r"it has pickled weights alone.*--allow-pickle"):
        loaded(vae=str(folder))
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(loaded(vae=str(folder), allow_pickle=True).encode(x), loaded().encode(x))


def test_an_autoencoder_of_other_latents_is_refused(
    loaded: Callable[..., UNetModel], tiny: Path, tmp_path: Path
) -> None:
    from diffusers import AutoencoderKL

    config = json.loads((tiny / "vae" / "config.json").read_text())
    AutoencoderKL.from_config({**config, "latent_channels": 16}).save_pretrained(tmp_path / "vae")
    message = refused(loaded, vae=str(tmp_path / "vae"))
    assert "16 latent channels at 1/8 of the size" in message


def test_tiles_are_switched_on(loaded: Callable[..., UNetModel]) -> None:
    assert loaded(vae_tiling=True).vae.use_tiling
    assert not loaded().vae.use_tiling


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by itself
def test_a_compiled_network_answers_the_same(
    loaded: Callable[..., UNetModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and run as its graph; the C++ of it, which takes minutes, is not made here."""
    graphs: list[int] = []

    def traced(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend=traced))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    torch.testing.assert_close(sampled(loaded(compile=True)), sampled(loaded()))
    assert max(graphs) > 100


def test_compiling_without_a_compiler_is_refused(
    loaded: Callable[..., UNetModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert "takes a C++ compiler" in refused(loaded, compile=True)


# --- bad files, and the command line ---


@pytest.mark.parametrize("what", ["lora", "textual_inversion"])
def test_a_file_that_is_not_safetensors_is_refused(
    loaded: Callable[..., UNetModel], what: str, tmp_path: Path
) -> None:
    assert "no such file" in refused(loaded, **{what: (str(tmp_path / "none.safetensors"),)})
    for name, says in (("a.pt", "others may run code"), ("a.safetensors", "not a safetensors file")):
        (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
        assert says in refused(loaded, **{what: (str(tmp_path / name),)})


def test_an_edit_with_additions_is_made_again_from_its_record(tiny: Path, lora: Path, tmp_path: Path) -> None:
    photo, mask = np.full((64, 64, 3), 99, np.uint8), np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    for name, pixels in (("photo", photo), ("mask", mask)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    words = shlex.split(
        f"edit --image {tmp_path}/photo.png --mask {tmp_path}/mask.png --prompt '{PROMPT}' --model {tiny} "
        f"--lora {lora}:0.5 --lora {lora} --vae-tiling --seed 3 --steps 2 --candidates 1 --device cpu "
        f"--output {tmp_path}/out"
    )

    def bld(*words: object) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "bld.apps.cli", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    bld(*words)
    told = bld("info", tmp_path / "out" / "result.png").splitlines()[-1]
    again = shlex.split(told[told.index("bld edit") :])[1:]
    assert [again[i + 1] for i, one in enumerate(again) if one == "--lora"] == [f"{lora}:0.5", str(lora)]
    assert "--vae-tiling" in again
    bld(*again, "--output", tmp_path / "again")
    first, second = (tmp_path / folder / "result.png" for folder in ("out", "again"))
    assert first.read_bytes() == second.read_bytes()
    options = LoadOptions(device="cpu", lora=(f"{lora}:0.5", str(lora)), vae_tiling=True)
    editor = Editor.from_pretrained(str(tiny), options=options)
    result = editor.edit(photo, mask, PROMPT, seed=3, steps=2, candidates=1)
    assert np.array_equal(np.asarray(Image.open(first)), result.best.photograph.pixels)


# --- memory ---


def test_offloading_is_refused_where_there_is_nothing_to_spare(loaded: Callable[..., UNetModel]) -> None:
    assert "--offload spares the memory of a GPU" in refused(loaded, offload=True)


def test_offloading_without_its_library_names_the_extra(
    tiny_model: UNetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.is_accelerate_available", lambda: False)
    with pytest.raises(MissingExtra, match=r"pip install 'blended-latent-diffusion\[offload\]'"):
        offload(tiny_model)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 8 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    MemoryError(),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=("cuda", "cpu", "python"))
def test_an_edit_that_does_not_fit_the_memory_says_what_may_help(
    loaded: Callable[..., UNetModel], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded()
    editor, photo, mask = Editor(model), np.full((64, 64, 3), 99, np.uint8), np.ones((64, 64), bool)
    made = editor.edit(photo, mask, PROMPT, seed=3, steps=1, candidates=1)

    def full(*_: object, **__: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(model.unet, "forward", full)
    with pytest.raises(BldError, match="not enough memory") as caught:
        editor.edit(photo, mask, PROMPT, seed=3, steps=1, candidates=1)
    message = str(caught.value)
    assert "\n" not in message
    assert all(help in message for help in ("--batch-size", "--vae-tiling", "--offload", "--dtype"))
    assert ("Tried to allocate" in message, "8 GiB" in message) == (False, False), "a line, not a report"
    monkeypatch.setattr(model.vae, "decode", full)
    with pytest.raises(BldError, match="not enough memory"):
        editor.finish(photo, mask, PROMPT, made.latents, options=made.options)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    loaded: Callable[..., UNetModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded()

    def wrong(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(model.unet, "forward", wrong)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Editor(model).edit(np.full((64, 64, 3), 99, np.uint8), np.ones((64, 64), bool), PROMPT, steps=1)
