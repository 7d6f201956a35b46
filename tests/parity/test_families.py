"""Every family beside diffusers' own pipeline of the same checkpoint, and what an edit promises whatever
the model.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bld import Editor
from bld.apps.record import Inputs, loading, read_folder, record, request
from bld.blend import blend
from bld.models.adapt import offload
from bld.models.base import CLEAN, LatentModel
from bld.models.load import load_model
from bld.options import EditOptions, LoadOptions, resolve
from tests.families import CHECKPOINTS, SIDE

PROMPT, NEGATIVE, STEPS = "a red apple", "a guitar", 4
NAMES = list(CHECKPOINTS)
CONSISTENT = ("lcm", "lcm-plain", "sdxl-turbo")  # noised anew at every step
SCALES = {  # of guidance, where the family runs the network twice or tells it; 1 elsewhere
    "sd1": 5.0, "sd2-v": 5.0, "ldm": 5.0, "sdxl": 5.0, "lcm": 8.0, "sd3": 5.0, "sd3-without-t5": 5.0,
    "flux-dev": 3.5, "flux2-klein-base": 4.0, "z-image": 5.0,
}  # fmt: skip

# float32 in both, multiplied in another order, over four steps with guidance 5 and latents up to about 40.
TOLERANCE = {"atol": 2e-3, "rtol": 1e-3}


@pytest.fixture(scope="session")
def families(checkpoints: Callable[[str], Path]) -> Callable[[str], Any]:
    @cache
    def by_name(name: str) -> Any:
        model = load_model(str(checkpoints(name)), device="cpu")
        model.native_size = SIDE  # the families of 1024 px would take their time
        return model

    return by_name


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str, families: Callable[[str], Any]) -> Any:
    return families(name)


def grid(model: LatentModel) -> tuple[int, int]:
    side = SIDE // model.latent_factor
    return side, side


def options(name: str, **changes: Any) -> EditOptions:
    asked = EditOptions(**{"steps": STEPS, "guidance_scale": SCALES.get(name, 1.0), **changes})
    return resolve(asked, steps=1, guidance_scale=1, shrink=False, soft_mask=False, feather=0)


def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def z_of(model: LatentModel) -> torch.Tensor:
    return model.encode(torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def last(model: LatentModel, name: str, m: torch.Tensor, *seeds: int, **changes: Any) -> torch.Tensor:
    trajectory = model.trajectory(PROMPT, options(name, **changes), grid(model))
    return list(blend(trajectory, z_of(model), [m] * len(trajectory), generators(*seeds)))[-1]


# --- beside diffusers ---


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CONSISTENT])
def test_plain_sampling_is_that_of_the_pipeline(
    name: str, families: Callable[[str], Any], checkpoints: Callable[[str], Path]
) -> None:
    """The same checkpoint, loaded by diffusers alone, from the same noise; DDIM where the sampler is free."""
    import diffusers

    model = families(name)
    pipeline = theirs_of(checkpoints(name))
    eps = torch.randn(z_of(model).shape, generator=torch.Generator().manual_seed(7))
    ours = []
    z = eps
    for step in model.trajectory(PROMPT, options(name, negative_prompt=negative(name)), grid(model)):
        z = step.denoise(z)
        ours.append(z)
    if hasattr(model, "unet"):
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    theirs = latents_of(pipeline, call(name, pipeline, eps))
    if not getattr(pipeline.scheduler.config, "set_alpha_to_one", True):
        ours, theirs = ours[:-1], theirs[:-1]  # they end on a level that is not quite clean
    for number, (found, expected) in enumerate(zip(ours[-len(theirs) :], theirs, strict=True)):
        expected = unpacked(model, expected)
        torch.testing.assert_close(found, expected, **TOLERANCE, msg=lambda m, i=number: f"step {i}: {m}")


def theirs_of(folder: Path) -> Any:
    """diffusers' own pipeline of a checkpoint."""
    import diffusers

    said = json.loads((folder / "model_index.json").read_text())
    absent = {part: None for part, kind in said.items() if kind == [None, None] and "_3" in part}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents_of(pipeline: Any, asked: dict[str, Any]) -> list[torch.Tensor]:
    """The latents after each step; of a pipeline that does not say, after the last."""
    if type(pipeline).__name__ == "LDMTextToImagePipeline":
        kept: list[torch.Tensor] = []
        pipeline.vqvae.decode = lambda z: kept.append(z * pipeline.vqvae.config.scaling_factor) or stop()
        with pytest.raises(StopIteration):
            pipeline(**{key: value for key, value in asked.items() if key != "output_type"})
        return kept
    seen: list[torch.Tensor] = []

    def keep(_: Any, __: int, ___: Any, state: dict[str, Any]) -> dict[str, Any]:
        seen.append(state["latents"])
        return state

    pipeline(**asked, callback_on_step_end=keep)
    return seen


def stop() -> None:
    raise StopIteration


def negative(name: str) -> str:
    """A negative prompt where the pipeline takes one."""
    return NEGATIVE if name.startswith(("sd", "z-")) and name != "sdxl-turbo" else ""


def call(name: str, pipeline: Any, eps: torch.Tensor) -> dict[str, Any]:
    """What the pipeline of a name is asked for, from the noise eps (b c h w)."""
    scale = SCALES.get(name, 1.0)
    asked: dict[str, Any] = {
        "prompt": PROMPT, "num_inference_steps": STEPS, "guidance_scale": scale, "height": SIDE,
        "width": SIDE, "latents": eps, "output_type": "latent",
    }  # fmt: skip
    if negative(name):
        asked["negative_prompt"] = negative(name)
    if name.startswith("flux-"):
        asked["latents"] = pipeline._pack_latents(eps, *eps.shape)
        asked["max_sequence_length"] = 512 if name == "flux-dev" else 256
    if name.startswith("flux2"):
        asked["latents"] = pipeline._patchify_latents(eps)
    if name == "z-image":
        asked["guidance_scale"] = scale - 1  # counted from 0 there
    return asked


def unpacked(model: Any, latents: torch.Tensor) -> torch.Tensor:
    """Tokens b n c as cells b c h w."""
    if latents.ndim == 4:
        return latents
    if model.pipeline == "FluxPipeline":
        return model.pipe._unpack_latents(latents, SIDE, SIDE, model.latent_factor)
    side = SIDE // model.latent_factor // 2
    return model.pipe._unpatchify_latents(latents.permute(0, 2, 1).reshape(len(latents), -1, side, side))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' scheduler
def test_decoding_is_that_of_the_pipeline(name: str, model: Any, checkpoints: Callable[[str], Path]) -> None:
    """D(E(x)) by diffusers' image processor and autoencoder."""

    pipeline = theirs_of(checkpoints(name))
    x = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = pipeline.vqvae if name == "ldm" else pipeline.vae
    with torch.no_grad():
        theirs = vae.decode(vae.encode(x).latent_dist.mode()).sample
    torch.testing.assert_close(model.decode(model.encode(x)), theirs, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.decoder()(model.encode(x)).detach(), theirs, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' scheduler
def test_a_turbo_model_jumps_as_its_pipeline_does(
    families: Callable[[str], Any], checkpoints: Callable[[str], Path]
) -> None:
    model, pipeline = families("sdxl-turbo"), theirs_of(checkpoints("sdxl-turbo"))
    assert (model.steps, model.guidance_scale) == (1, 1.0)
    eps = torch.randn(z_of(model).shape, generator=torch.Generator().manual_seed(7))
    (step,) = model.trajectory(PROMPT, options("sdxl-turbo", steps=1), grid(model))
    asked = {**call("sdxl-turbo", pipeline, eps), "num_inference_steps": 1, "guidance_scale": 0.0}
    expected = pipeline(**asked).images
    torch.testing.assert_close(step.denoise(step.level_in.sigma * eps), expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["lcm", "lcm-plain"])
def test_consistency_steps_are_those_of_the_scheduler(name: str, families: Callable[[str], Any]) -> None:
    from diffusers import LCMScheduler

    model = families(name)
    trajectory = model.trajectory(PROMPT, options(name), grid(model))
    predict = model.guided(PROMPT, options(name), grid(model), range(1000))
    scheduler = LCMScheduler.from_config(model.scheduler)
    scheduler.set_timesteps(STEPS)
    z = torch.randn(z_of(model).shape, generator=torch.Generator().manual_seed(7))
    noises = [torch.randn(z.shape, generator=g) for g in generators(0, 1, 2, 3)]
    ours = theirs = z
    for number, (step, t) in enumerate(zip(trajectory, scheduler.timesteps, strict=True)):
        ours = step.denoise(step.level_in.noise(ours, noises[number - 1]) if number else ours)
        noised = scheduler.add_noise(theirs, noises[number - 1], t[None]) if number else theirs
        theirs = scheduler.step(predict(noised, int(t)), t, noised).denoised
        torch.testing.assert_close(ours, theirs, **TOLERANCE, msg=lambda m, i=number: f"step {i}: {m}")
        assert step.level_out == CLEAN


# --- what holds whatever the model ---


def test_outside_the_mask_and_with_none_the_latent_is_z_init(name: str, model: Any) -> None:
    m = torch.zeros(grid(model))
    assert torch.equal(last(model, name, m, 3), z_of(model))
    m[2:6, 2:6] = 1
    z, z_init = last(model, name, m, 3), z_of(model)
    outside = (m == 0).expand_as(z)
    assert torch.equal(z[outside], z_init[outside])
    assert not torch.equal(z, z_init)


def test_a_full_mask_is_plain_sampling(name: str, model: Any) -> None:
    trajectory = model.trajectory(PROMPT, options(name), grid(model))
    (draws,) = generators(3)
    z, level = z_of(model), CLEAN
    for step in trajectory:
        if step.level_in != level:
            z = step.level_in.noise(z, torch.randn(z.shape[1:], generator=draws)[None])
        z, level = step.denoise(z), step.level_out
        torch.randn(z.shape[1:], generator=draws)  # the background's
    assert torch.equal(last(model, name, torch.ones(grid(model)), 3), z)


def test_a_batch_equals_its_singles(name: str, model: Any) -> None:
    m = torch.ones(grid(model))
    together = last(model, name, m, 3, 4)
    for row, seed in zip(together, (3, 4), strict=True):
        # Batched products are summed in another order.
        torch.testing.assert_close(row, last(model, name, m, seed)[0], **TOLERANCE)


def test_the_prompt_matters_and_so_does_the_strength(name: str, model: Any) -> None:
    trajectory = model.trajectory(PROMPT, options(name), grid(model))
    other = model.trajectory(NEGATIVE, options(name), grid(model))
    z = torch.randn(z_of(model).shape, generator=torch.Generator().manual_seed(7))
    assert not torch.equal(trajectory[0].denoise(z), other[0].denoise(z))
    weaker = model.trajectory(PROMPT, options(name, strength=0.5), grid(model))
    assert [step.level_in for step in weaker] == [step.level_in for step in trajectory[STEPS // 2 :]]


def test_an_edit_leaves_the_background_to_the_byte_and_its_record_makes_it_again(
    name: str, model: Any, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    photo, mask = photograph(), np.zeros((SIDE, SIDE), bool)
    mask[16:48, 20:44] = True
    paths = {what: str(tmp_path / f"{what}.png") for what in ("photo", "mask")}
    Image.fromarray(photo).save(paths["photo"])
    Image.fromarray(mask).convert("L").save(paths["mask"])
    result = Editor(model).edit(*paths.values(), PROMPT, candidates=2, seed=5, steps=2)
    for candidate in result.candidates:
        pixels = candidate.photograph.pixels
        assert np.array_equal(pixels[~mask], photo[~mask])
        assert not np.array_equal(pixels[mask], photo[mask])
    assert result.options.guidance_scale == model.guidance_scale
    loaded = LoadOptions(device="cpu")
    made = record(result, Inputs(paths["photo"], paths["mask"], loaded, "none"))
    (tmp_path / "edit.json").write_text(json.dumps(made))
    facts = read_folder(tmp_path)
    asked = facts["request"]
    assert (asked["model"], loading(facts), facts["ranker"]) == (str(checkpoints(name)), loaded, None)
    again = Editor(model).edit(asked["image"], asked["mask"], asked["prompt"], options=request(facts))
    assert again.options == result.options
    for one, other in zip(again.candidates, result.candidates, strict=True):
        assert np.array_equal(one.photograph.pixels, other.photograph.pixels)


def test_the_models_own_number_of_steps_is_taken(name: str, model: Any) -> None:
    asked = resolve(
        EditOptions(), steps=model.steps, guidance_scale=1, shrink=False, soft_mask=False, feather=0
    )
    assert len(model.trajectory(PROMPT, asked, grid(model))) == model.steps


def test_a_prompt_that_is_too_long_is_told(name: str, model: Any) -> None:
    assert model.excess(PROMPT) == ""
    assert model.excess("") == ""
    assert model.excess("a cat " * 600).strip()


def test_without_weights_it_reads_the_same(
    name: str, model: Any, checkpoints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("bld.models.family.whole_network", never)
    reader = load_model(str(checkpoints(name)), device="cpu", weights=False)
    for prompt in ("", PROMPT, "a cat " * 600):
        assert reader.excess(prompt) == model.excess(prompt)
    assert reader.revision == model.revision


def test_the_decoder_can_be_tuned(name: str, model: Any) -> None:
    decoder = model.decoder()
    decoder(z_of(model)).square().mean().backward()
    assert all(p.grad is not None for p in decoder.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in model.vae.parameters())


def test_offloading_reaches_every_network_and_changes_nothing(
    name: str, model: Any, checkpoints: Callable[[str], Path]
) -> None:
    """There is no GPU here: each network goes from the CPU to the CPU, by accelerate's own hooks."""
    other = load_model(str(checkpoints(name)), device="cpu", vae=str(vae_of(checkpoints(name))))
    offload(other)
    networks = {part: getattr(other.pipe, part) for part in other.parts}
    networks = {part: net for part, net in networks.items() if isinstance(net, torch.nn.Module)}
    assert other.vae in networks.values()
    assert [part for part, network in networks.items() if not hasattr(network, "_hf_hook")] == []
    m = torch.ones(grid(model))
    m[2:6, 2:6] = 0
    # Weights that lie elsewhere in memory are summed in another order.
    torch.testing.assert_close(last(other, name, m, 3), last(model, name, m, 3), **TOLERANCE)
    torch.testing.assert_close(other.decode(z_of(other)), model.decode(z_of(model)), **TOLERANCE)


def vae_of(folder: Path) -> Path:
    return folder / "vqvae" if (folder / "vqvae").is_dir() else folder / "vae"


def test_each_latent_of_a_batch_may_have_its_own_prompt(model: Any, name: str) -> None:
    """As `Editor.edit_together` denoises: the prompts do not reach each other's latents."""
    prompts, z = (PROMPT, NEGATIVE, PROMPT), torch.cat([z_of(model)] * 3)
    (shared, *_) = model.trajectory(prompts, options(name), grid(model))
    for i, prompt in enumerate(prompts):
        (step, *_) = model.trajectory(prompt, options(name), grid(model))
        torch.testing.assert_close(shared.denoise(z)[i : i + 1], step.denoise(z[:1]), **TOLERANCE)
