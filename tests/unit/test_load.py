"""Loading a model: what is found by which name, and one line for whatever is wrong with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from bld.errors import InvalidInput, ModelUnavailable
from bld.models import load, memory
from bld.models.load import BUNDLED, BUNDLED_NAMES, find, load_model, pick_device, pick_dtype
from bld.models.unet import UNetModel
from bld.models.weights import fingerprint

PARTS = tuple(UNetModel.parts)
WEIGHTS = {
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
CONFIGS = {
    "vae": "vae/config.json",
    "unet": "unet/config.json",
    "text_encoder": "text_encoder/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
}


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A folder that may be damaged."""
    return shutil.copytree(tiny, tmp_path / "model")


def refused(folder: Path | str) -> str:
    """The one line that refuses a model."""
    with pytest.raises(ModelUnavailable) as caught:
        load_model(str(folder), device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    facts = json.loads(file.read_text(encoding="utf-8"))
    change(facts)
    file.write_text(json.dumps(facts), encoding="utf-8")


# --- names ---


def test_a_bundled_name_is_the_packages_own_folder() -> None:
    assert BUNDLED_NAMES == ("mini",)
    assert find("mini") == BUNDLED / "mini"


def test_a_folder_is_found_by_its_path(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find(str(tiny)) == tiny
    monkeypatch.chdir(tiny.parent)
    assert find("tiny").resolve() == tiny
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert find("~/tiny") == tiny
    # A bundled name means the bundled model wherever it is asked for.
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find("mini") == BUNDLED / "mini"


@pytest.mark.parametrize("name", ["maxi", "a/b/c", "./models/none", "/models/none", "~/none", "a\0b"])
def test_an_unknown_model_is_refused_with_what_may_be_given(name: str) -> None:
    message = refused(name)
    assert name in message
    for offer in ("mini", "folder", "owner/name"):
        assert offer in message


@pytest.mark.parametrize("name", ["owner/name", "owner/not a name"])
def test_a_hub_model_that_cannot_be_had_says_what_to_look_at(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Offline (tests always are) and not downloaded before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refused(name)
    assert message.startswith(f"model {name}: no folder of that name")
    for cause in ("check the name", "network", "HF_HUB_OFFLINE"):
        assert cause in message


def test_a_hub_model_is_fetched_without_pickled_weights(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    asked: dict[str, Any] = {}
    patterns: list[list[str]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        patterns.append(options["allow_patterns"])
        return str(tiny)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = load_model("owner/name", device="cpu")
    assert model.name == "owner/name"
    assert asked["name"] == "owner/name"
    wanted = ["model_index.json", "vae/config.json", "unet/diffusion_pytorch_model.safetensors"]
    second_copies = ["unet/model.bin", "unet/model.fp16.safetensors", "v1-5-pruned.safetensors"]
    second_copies.append("safety_checker/model.safetensors")
    assert patterns[0] == ["model_index.json"], "before a large download it is known what loads it"
    taken = filter_repo_objects(
        [*wanted, *second_copies, "README.md"],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert set(taken) == set(wanted)


# --- folders ---


def test_a_good_folder_loads_without_the_network(tiny: Path) -> None:
    model = load_model(str(tiny), device="cpu")
    assert isinstance(model, UNetModel)
    assert model.name == str(tiny)


def test_a_tokenizer_in_the_older_layout_reads_the_same(copy: Path) -> None:
    """Stable Diffusion 1's folder has vocab.json and merges.txt, and no tokenizer.json."""
    whole = load_model(str(copy), device="cpu")
    (copy / "tokenizer" / "tokenizer.json").unlink()
    older = load_model(str(copy), device="cpu")
    assert isinstance(whole, UNetModel)
    assert isinstance(older, UNetModel)
    assert torch.equal(older.embed("a red apple"), whole.embed("a red apple"))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    message = refused(tmp_path)
    assert str(tmp_path) in message
    assert "model_index.json" in message


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    message = refused(copy)
    assert f"its {part} is missing" in message
    assert ", ".join(PARTS) in message


@pytest.mark.parametrize("part", PARTS)
def test_an_empty_part_is_named(copy: Path, part: str) -> None:
    for file in (copy / part).iterdir():
        file.unlink()
    assert f"its {part}" in refused(copy)


@pytest.mark.parametrize("damage", ["absent", "empty", "cut"])
@pytest.mark.parametrize("part", WEIGHTS)
def test_damaged_weights_are_named(copy: Path, part: str, damage: str) -> None:
    file = copy / WEIGHTS[part]
    content = file.read_bytes()
    file.unlink()
    if damage != "absent":
        file.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    assert f"its {part}" in refused(copy)


@pytest.mark.parametrize("damage", ["absent", "empty", "cut"])
@pytest.mark.parametrize("part", CONFIGS)
def test_a_damaged_configuration_is_named(copy: Path, part: str, damage: str) -> None:
    file = copy / CONFIGS[part]
    content = file.read_bytes()
    file.unlink()
    if damage != "absent":
        file.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    assert f"its {part}" in refused(copy)


@pytest.mark.parametrize("damage", ["lost", "of another shape"])
@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_do_not_fit_are_never_made_up(copy: Path, part: str, damage: str) -> None:
    """Both libraries fill a gap with random numbers, which a user would see as a bad picture."""
    file = copy / WEIGHTS[part]
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "norm" in name)
    tensors[name] = tensors[name][:1].clone()
    if damage == "lost":
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    assert f"its {part}" in refused(copy)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '"text"', "{}", '{"vae": null, "unet": null, "text_encoder": null}'],
)
def test_an_index_that_says_nothing_is_refused(copy: Path, content: str) -> None:
    (copy / "model_index.json").write_text(content)
    assert str(copy) in refused(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    weights = copy / WEIGHTS["unet"]
    torch.save(load_file(weights), weights.with_name("diffusion_pytorch_model.bin"))
    weights.unlink()
    assert "safetensors" in refused(copy)


def test_an_inpainting_unet_is_refused_with_the_reason(copy: Path) -> None:
    """Its UNet takes 9 channels: latents, mask and masked picture."""
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(copy, subfolder="unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(copy / "unet")
    message = refused(copy)
    assert "9 channels, not the latent's 4" in message
    assert "inpainting" in message


def test_another_family_is_refused_by_its_parts(copy: Path) -> None:
    edit_json(
        copy / "model_index.json",
        lambda index: index.update(text_encoder=["transformers", "T5EncoderModel"]),
    )
    message = refused(copy)
    assert "T5EncoderModel" in message
    assert "its text_encoder is a T5EncoderModel, expected a CLIPTextModel" in message


def test_a_folder_may_leave_its_guidance_scale_to_the_family(copy: Path) -> None:
    edit_json(copy / "model_index.json", lambda index: index.pop("_bld_guidance_scale"))
    assert load_model(str(copy), device="cpu").guidance_scale == 7.5  # Stable Diffusion's own


def test_a_folder_says_whether_a_photograph_of_its_size_is_worked_on_whole(copy: Path) -> None:
    assert not load_model(str(copy), device="cpu").whole
    edit_json(copy / "model_index.json", lambda index: index.pop("_bld_whole"))
    assert load_model(str(copy), device="cpu").whole


# --- device and precision ---


def test_without_a_gpu_auto_is_the_cpu_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    device = pick_device("auto")
    assert device == torch.device("cpu")
    assert pick_dtype("auto", device) == torch.float32


def test_with_a_gpu_auto_is_the_gpu_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = pick_device("auto")
    assert device == torch.device("cuda")
    assert pick_dtype("auto", device) == torch.float16


@pytest.mark.parametrize("name", ["cuda:99", "hip", "gpu", "", "CPU", "meta"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    """ "meta" is torch's device without memory: a model there loads, and draws nothing."""
    with pytest.raises(InvalidInput, match=r"--device .*: not usable here .*try --device cpu") as caught:
        pick_device(name)
    message = str(caught.value)
    assert message.startswith(f"--device {name}:")
    assert "\n" not in message
    assert len(message) < 400


def test_float16_on_a_cpu_is_refused_with_what_works() -> None:
    with pytest.raises(InvalidInput, match=r"--dtype float16 .*float32 or bfloat16"):
        pick_dtype("float16", torch.device("cpu"))
    assert pick_dtype("float16", torch.device("cuda")) == torch.float16


@pytest.mark.parametrize("name", ["float64", "fp16", ""])
def test_an_unknown_precision_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidInput, match="auto, float32, bfloat16, float16"):
        pick_dtype(name, torch.device("cpu"))  # type: ignore[arg-type]


def test_device_and_precision_are_checked_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "find", lambda _: pytest.fail("looked for the model"))
    with pytest.raises(InvalidInput):
        load_model("mini", device="gpu")
    with pytest.raises(InvalidInput):
        load_model("mini", device="cpu", dtype="float16")


def test_the_precision_is_that_of_every_part(tiny: Path) -> None:
    model = load_model(str(tiny), device="cpu", dtype="bfloat16")
    assert isinstance(model, UNetModel)
    for part in (model.vae, model.unet, model.text_encoder):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.bfloat16}


# --- pickles ---


class Evil:
    """What a pickle may do when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def pickled(folder: Path, part: str, weights: Any) -> None:
    """Put a pickle in the place of a part's safetensors."""
    (file,) = (folder / part).glob("*.safetensors")
    torch.save(weights, file.with_name("diffusion_pytorch_model.bin"))
    file.unlink()


def test_pickled_weights_are_read_only_when_that_is_allowed(copy: Path) -> None:
    whole = load_model(str(copy), device="cpu")
    pickled(copy, "unet", load_file(next((copy / "unet").glob("*.safetensors"))))
    message = refused(copy)
    assert "its unet has pickled weights alone" in message
    assert "--allow-pickle" in message
    loaded = load_model(str(copy), device="cpu", allow_pickle=True)
    assert isinstance(loaded, UNetModel)
    assert isinstance(whole, UNetModel)
    for mine, theirs in zip(loaded.unet.parameters(), whole.unet.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    (file,) = (copy / "unet").glob("*.bin")
    file.write_bytes(file.read_bytes() + b"\0")
    assert fingerprint(copy, PARTS) != loaded.revision, "the revision does not know of the pickle"


def test_a_second_copy_of_the_weights_takes_no_memory(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [file for part in PARTS for file in (copy / part).glob("*.safetensors")]
    need = 4 * sum(tensor.numel() for file in files for tensor in load_file(file).values())
    for file in files:
        shutil.copy(file, file.with_name(f"{file.stem}.fp16.safetensors"))
    monkeypatch.setattr(memory, "free_memory", lambda device: need)
    load_model(copy, device="cpu")
    monkeypatch.setattr(memory, "free_memory", lambda device: need - 1)
    assert "its weights take" in refused(copy)


def test_files_that_were_read_are_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container they count as taken, until somebody needs it."""
    monkeypatch.setattr(memory, "LIMITS", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\nactive_file 200\ninactive_file 400\n")
    assert memory.free_memory(torch.device("cpu")) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert (memory.free_memory(torch.device("cpu")) or 0) > 1000


def test_a_malicious_pickle_runs_nothing(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    pickled(copy, "unet", {"conv_in.weight": Evil(marker)})
    torch.load(copy / "unet" / "diffusion_pytorch_model.bin", weights_only=False)
    assert marker.is_file(), "the pickle is harmless: it proves nothing"
    marker.unlink()
    refused(copy)
    with pytest.raises(ModelUnavailable, match="cannot load its unet"):
        load_model(str(copy), device="cpu", allow_pickle=True)
    assert not marker.exists()
