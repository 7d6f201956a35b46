"""The recipe of the bundled model, on material made here: the real data is no part of the repository."""

import dataclasses
import io
import json
import math
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from PIL import Image, ImageDraw
from torch import nn
from transformers import CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from bld.errors import InvalidInput
from bld.training import autoencoder, ranker, text_encoder, text_to_image, tokenizer
from bld.training.captions import Captions
from bld.training.colours import COLOURS, dominant, nearest
from bld.training.composites import Compositor, background_pool
from bld.training.data import FLUENT, NOTO, PHOTOGRAPHS, SCENERY, everything, load_sprites
from bld.training.limits import Limits
from bld.training.loop import OutOfTime, Run, alone, rate, whole
from bld.training.recipes import RECIPES
from bld.training.run import Training
from bld.training.vocabulary import EMPTY_SCENE, Name, captions, coloured, styles, vocabulary

NAMES = (
    Name(name="ball", group="things", sprite="ball", flies=True),
    Name(name="box", group="things", sprite="crate", also=("carton",)),
    Name(name="jeans", group="things", sprite="jeans", article=False),
)


def add(archive: tarfile.TarFile, key: str, picture: Image.Image, ending: str, **facts: object) -> None:
    content = io.BytesIO()
    picture.save(content, {"jpg": "JPEG", "webp": "WEBP"}[ending])
    for name, data in ((ending, content.getvalue()), ("json", json.dumps(facts).encode())):
        member = tarfile.TarInfo(f"{key}.{name}")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tars in the real layout: three cut-outs in two styles, ten scenes, twelve photographs."""
    folder = tmp_path_factory.mktemp("data")
    for tar in (FLUENT, NOTO):
        with tarfile.open(folder / tar, "w") as archive:
            for number, name in enumerate(NAMES):
                cutout = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
                box = (40, 60 + 20 * number, 200, 180)
                ImageDraw.Draw(cutout).ellipse(box, fill=(250, 80 * number, 40, 255))
                keywords = [name.sprite, "shared", f"own {name.name}"]
                add(archive, f"s_{number}", cutout, "webp", caption=name.sprite, keywords=keywords)
    rng = np.random.default_rng(0)
    for tar, count, side in ((SCENERY, 10, 200), *((tar, 12, 64) for tar in PHOTOGRAPHS)):
        with tarfile.open(folder / tar, "w") as archive:
            for number in range(count):
                picture = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
                add(archive, f"p_{number:02d}", picture, "jpg", caption="", keywords=[])
    return folder


@pytest.fixture
def compositor(data: Path) -> Compositor:
    grey = np.full((64, 64, 3), 128, np.uint8)
    pool = background_pool([grey], grey[None], 8, 64, seed=0)
    return Compositor(load_sprites(data, NAMES), pool)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- words ---


def test_names_are_distinct_and_lower_case() -> None:
    names = [name.name for name in vocabulary()]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() for name in names)
    assert 120 <= len(names) <= 150


@pytest.mark.parametrize(
    ("name", "phrase"),
    [("guitar", "a guitar"), ("owl", "an owl"), ("unicorn", "a unicorn"), ("ufo", "a ufo")],
)
def test_phrases_take_the_right_article(name: str, phrase: str) -> None:
    assert Name(name=name, group="", sprite=name).phrase() == phrase


@pytest.mark.parametrize("name", NAMES)
def test_caption_probabilities_add_up(name: Name) -> None:
    drawn = captions(name, ("own word",))
    assert sum(weight for _, weight in drawn) == pytest.approx(1)
    assert sum(weight for text, weight in drawn if name.name in text) == pytest.approx(0.85)


def drawn_texts(table: Captions, words: CLIPTokenizer, subject: torch.Tensor) -> list[str]:
    """One caption for each subject, as text."""
    rows = table.draw(subject, generator())
    return [str(words.decode(ids, skip_special_tokens=True)) for ids in table.ids[rows]]


def test_one_caption_in_ten_is_empty(tmp_path: Path) -> None:
    words = tokenizer.train([t for n in NAMES for t, _ in captions(n)], 600, 24, tmp_path)
    table = Captions(NAMES, {}, words, styles(flat=False))
    empty_scenes = 0.09
    null = torch.where(table.choices == 0, table.weights, 0).sum(1)
    share = (1 - empty_scenes) * null[0] + empty_scenes * null[-1]
    assert float(share) == pytest.approx(0.10, abs=0.005)
    assert float(table.weights.sum(1).sub(1).abs().max()) < 1e-5
    subjects = table.subject(torch.tensor([0, 2, 2, -1]), torch.tensor([-1, -1, 4, -1]))
    drawn = table.draw(subjects, generator())
    assert table.ids[drawn].shape == (4, 24)


def test_a_coloured_picture_gets_a_caption_with_its_colour(tmp_path: Path) -> None:
    words = tokenizer.train([t for n in NAMES for t, _ in captions(n)], 600, 24, tmp_path)
    table = Captions(NAMES, {}, words, styles(flat=False))
    for place, colour in enumerate(COLOURS):
        subject = table.subject(torch.tensor([2]).expand(40), place)
        texts = set(drawn_texts(table, words, subject))
        assert texts - {""} <= {text for text, _ in coloured(NAMES[2], colour)}
        assert len(texts) > 2
    plain = table.draw(table.subject(torch.tensor([2]).expand(40)), generator())
    assert not any(colour in words.decode(table.ids[row]) for row in plain for colour in COLOURS)


def test_tokenizer_gives_every_text_an_id_and_the_end_the_largest(tmp_path: Path) -> None:
    words = tokenizer.train(
        [t for n in NAMES for t, _ in captions(n)] + [t for t, _ in EMPTY_SCENE], 600, 24, tmp_path
    )
    assert max(words.get_vocab().values()) == words.eos_token_id == words.pad_token_id
    ids = words("A BALL, zürich ☃")["input_ids"]
    assert ids[0] == words.bos_token_id
    assert ids.count(words.eos_token_id) == 1, "an unknown symbol became the end of the text"
    assert words.tokenize("a ball") == ["a</w>", "ball</w>"]
    assert {p.name for p in tmp_path.iterdir()} >= {"vocab.json", "merges.txt", "tokenizer.json"}


def test_the_same_captions_give_the_same_tokens() -> None:
    texts = [text for name in vocabulary() for text, _ in captions(name)]
    first = tokenizer.merges(texts, 1536)
    assert all(tokenizer.merges(texts, 1536) == first for _ in range(3)), "a resumed run would misread"


# --- pictures ---


def test_keywords_that_two_names_share_teach_neither(data: Path) -> None:
    sprites = load_sprites(data, NAMES)
    assert sprites.keywords["ball"] == ("ball", "own ball")
    with pytest.raises(InvalidInput, match="no cut-out shows ghost"):
        load_sprites(data, (*NAMES, Name(name="ghost", group="", sprite="ghost")))


def test_composites_repeat_and_their_masks_are_exact(compositor: Compositor) -> None:
    drawn, again = compositor.draw(256, generator(3)), compositor.draw(256, generator(3))
    assert torch.equal(drawn.image, again.image)
    assert drawn.image.min() >= 0
    assert drawn.image.max() <= 1
    empty = drawn.name < 0
    assert 8 < int(empty.sum()) < 42  # binomial, 256 draws of 0.09
    assert (drawn.alpha[empty] == 0).all()
    assert (drawn.alpha[~empty].amax((1, 2, 3)) > 0.9).all(), "an object is not in its picture"
    seen = (drawn.alpha > 0).float().mean((1, 2, 3))[~empty]
    assert float(seen.max()) < 0.9


def test_a_quarter_of_the_objects_with_a_colour_get_another(compositor: Compositor) -> None:
    """ "ball" is red and "box" orange; no cut-out whose name says its colour changes."""
    drawn = compositor.draw(512, generator(4))
    changed = drawn.colour >= 0
    assert 0.15 < float(changed[drawn.name >= 0].float().mean()) < 0.35
    assert not changed[drawn.name < 0].any()
    for i in torch.nonzero(changed & (drawn.colour != 0))[:16, 0]:
        hue, _ = dominant(drawn.image[i][None], (drawn.alpha[i] > 0.99).float())
        assert nearest(float(hue)) == list(COLOURS)[int(drawn.colour[i])]


def test_a_name_that_says_its_colour_keeps_it(data: Path) -> None:
    named = (dataclasses.replace(NAMES[0], name="red ball"), *NAMES[1:])
    assert load_sprites(data, named).hue.isnan().tolist() == [True, False, False]


def test_drawings_are_called_drawings(data: Path, tmp_path: Path) -> None:
    sprites = load_sprites(data, NAMES, (FLUENT, NOTO))
    assert sprites.flat.tolist() == [False] * 3 + [True] * 3
    words = tokenizer.train([t for n in NAMES for t, _ in captions(n)], 600, 24, tmp_path)
    table = Captions(NAMES, {}, words, styles(flat=True))
    ball = torch.zeros(400, dtype=torch.int64)
    texts = [
        drawn_texts(table, words, subject)
        for subject in (table.subject(ball, -1, 0), table.subject(ball, 3, 1), table.subject(ball - 1, -1, 1))
    ]
    assert 0.05 < sum("render of a ball" in text for text in texts[0]) / 400 < 0.15
    assert not any("drawing" in text for text in texts[0])
    assert 0.7 < sum(text == "a flat drawing of a green ball" for text in texts[1]) / 400 < 0.9
    assert set(texts[2]) == {text for text, _ in EMPTY_SCENE}


def test_every_cutout_but_flags_and_symbols_has_a_name(tmp_path: Path) -> None:
    cutout = Image.new("RGBA", (32, 32), (200, 30, 30, 255))
    known = [(name.sprite, name.group) for name in vocabulary()]
    more = [("man: red hair", "People"), ("woman: bald", "People"), ("OK button", "Symbols"),
            ("white flag", "Flags"), ("glasses", "Objects"), ("abacus", "Objects")]  # fmt: skip
    with tarfile.open(tmp_path / FLUENT, "w") as archive:
        for number, (caption, group) in enumerate([*known, *more]):
            add(archive, f"s_{number}", cutout, "webp", caption=caption, keywords=[], group=group)
    names = everything(tmp_path)
    assert names[: len(known)] == vocabulary()
    phrases = [name.phrase() for name in names[len(known) :]]
    assert phrases == ["a man with red hair", "a bald woman", "glasses", "an abacus"]


def test_objects_that_fly_cast_no_shadow(compositor: Compositor) -> None:
    drawn = compositor.draw(128, generator(1))
    darkest = drawn.shadow.amax((1, 2, 3))
    assert (darkest[drawn.name == 0] == 0).all()
    assert (darkest[drawn.name == 1] > 0.2).float().mean() > 0.5


# --- what the text encoder learns ---


def test_appearances_have_the_object_where_it_stands(compositor: Compositor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = autoencoder.build(RECIPES["tiny"].autoencoder, 64).eval()
    words = tokenizer.train([t for n in NAMES for t, _ in captions(n)], 600, 48, tmp_path)
    table = Captions(NAMES, {}, words, styles(flat=False))
    subjects, patches = text_encoder.appearances(vae, compositor, table)
    assert patches.shape == (len(NAMES) * (1 + len(COLOURS)) + 1, 36, 5), "a patch is one cell at 64 px"
    assert float(patches.mean(0).abs().max()) < 1e-5
    assert float(patches.std()) == pytest.approx(1)
    place = {int(subject): i for i, subject in enumerate(subjects)}
    plain, blue, empty = (
        patches[place[int(table.subject(torch.tensor(name), colour))]]
        for name, colour in ((1, -1), (1, 4), (-1, -1))
    )
    coverage = (plain - empty)[:, 4].view(6, 6)
    assert float(coverage.min()) > -1e-5, "an object covers more than the empty scene"
    assert float(coverage[2:4, 2:4].min()) > 3 * float(coverage[[0, 0, -1, -1], [0, -1, 0, -1]].max())
    torch.testing.assert_close(blue[:, 4], plain[:, 4])
    assert float((blue - plain)[:, :4].abs().max()) > 0.1, "its colour is in the latent"


def test_the_text_encoder_learns_what_names_look_like(
    compositor: Compositor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def known(samples: int) -> float:
        """The share that the log says of a text encoder that has read so many captions, %."""
        text = dataclasses.replace(recipe.text_encoder, samples=samples, learning_rate=3e-3)
        folder = tmp_path / str(samples)
        folder.mkdir()
        text_encoder.train(dataclasses.replace(recipe, text_encoder=text), compositor, vae, NAMES, folder)
        return float(caplog.messages[-1].split()[2])

    recipe = RECIPES["tiny"]
    torch.manual_seed(0)
    vae = autoencoder.build(recipe.autoencoder, recipe.size).eval().requires_grad_(False)
    caplog.set_level("INFO", "bld.training.text_encoder")
    assert known(16) < 20
    assert known(16 * 300) > 50


# --- training ---


def test_rate_warms_up_stays_and_falls_to_nothing() -> None:
    assert rate(0.01, warmup=0.02) == pytest.approx(0.5)
    assert rate(0.3, warmup=0.02) == 1
    assert rate(0.65, warmup=0.02) == pytest.approx(0.5)
    assert rate(1, warmup=0.02) == 0


def line(folder: Path, samples: int) -> tuple[Run, nn.Linear]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    draws = generator(5)
    run = Run(folder, "line", {"line": layer}, draws, samples, 4, 1e-2)

    def step() -> torch.Tensor:
        x = torch.randn(4, 3, generator=draws)
        return (layer(x)[:, 0] - x.sum(1)).square().mean()

    run.train(step)
    return run, layer


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A constant rate: with the schedule, half of a run is another run.
    monkeypatch.setattr("bld.training.loop.rate", lambda done, *, warmup: 1.0)
    monkeypatch.setattr("bld.training.loop.STEPS_BETWEEN_LOGS", 5)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole_run, whole = line(tmp_path / "whole", 80)
    line(tmp_path / "parts", 40)
    log = tmp_path / "parts" / "line.csv"
    log.write_text(log.read_text() + "60,0.1,1e-2,1\n8")  # and then it was killed
    resumed_run, resumed = line(tmp_path / "parts", 80)
    assert torch.equal(whole.weight, resumed.weight)
    assert torch.equal(
        whole_run.averages["line"].weights["weight"], resumed_run.averages["line"].weights["weight"]
    )
    assert resumed_run.done == 80
    rows = log.read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["samples", "20", "40", "60", "80"]
    assert "60,0.1,1e-2,1" not in rows


def test_two_runs_of_a_part_in_one_folder_are_refused(tmp_path: Path) -> None:
    training = Training(RECIPES["tiny"], tmp_path, tmp_path, None, torch.device("cpu"))
    with alone(tmp_path, "autoencoder"), pytest.raises(InvalidInput, match="another bld train is at work"):
        training.run("autoencoder")


def test_a_run_out_of_time_keeps_what_it_has_and_goes_on(tmp_path: Path) -> None:
    layer, draws = nn.Linear(3, 1), generator(5)

    def run(deadline: float) -> Run:
        made = Run(tmp_path, "line", {"line": layer}, draws, 80, 4, 1e-2, limits=Limits(deadline=deadline))
        made.train(lambda: layer(torch.randn(4, 3, generator=draws)).square().mean())
        return made

    with pytest.raises(OutOfTime, match="line: 4 of 80 samples"):
        run(deadline=0)
    with pytest.raises(OutOfTime, match="line: 8 of 80 samples"):
        run(deadline=0)
    assert run(deadline=math.inf).done == 80


def test_a_run_that_may_take_so_long_ends_by_then_with_its_rate_at_nothing(tmp_path: Path) -> None:
    layer, draws, rates = nn.Linear(3, 1), generator(5), []

    def run(name: str, within: float) -> Run:
        return Run(tmp_path, name, {"line": layer}, draws, 10**9, 4, 1e-2, limits=Limits(within=within))

    def step(of: Run) -> torch.Tensor:
        rates.append(of.optimizer.param_groups[0]["lr"])
        return layer(torch.randn(4, 3, generator=draws)).square().mean()

    whole = run("whole", 1.5)
    whole.train(lambda: step(whole))
    assert 4 < whole.done < 10**9
    assert whole.share >= 1
    assert max(rates) > 5e-3
    assert rates[-1] < 1e-3
    again = run("whole", 1.5)
    again.train(lambda: step(again))  # what is over stays over
    assert again.done == whole.done


def test_a_folder_is_there_when_all_of_it_is(tmp_path: Path) -> None:
    def fill(*names: str) -> None:
        with whole(tmp_path / "part") as fresh:
            for name in names:
                if name == "killed":
                    raise KeyboardInterrupt
                (fresh / name).write_text(name)

    with pytest.raises(KeyboardInterrupt):
        fill("a", "killed")
    assert not (tmp_path / "part").exists()
    fill("b")
    with pytest.raises(KeyboardInterrupt):
        fill("c", "killed")
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["b"]
    fill("d")
    assert [path.name for path in tmp_path.rglob("*")] == ["part", "d"]


def test_several_processes_train_one_model(data: Path, tmp_path: Path) -> None:
    """Two on this CPU: both end with the same weights, and one of them writes."""
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         str(Path(__file__).with_name("two_processes.py")), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    made = json.loads((tmp_path / "0.json").read_text()), json.loads((tmp_path / "1.json").read_text())
    assert made[0]["weights"] == made[1]["weights"]
    assert made[0]["first_draw"] != made[1]["first_draw"], "both drew the same batches"
    assert made[0]["done"] == made[1]["done"] == 80
    assert made[0]["made_by"] == made[1]["made_by"] == "0"
    assert all("cuda:1 with 2 processes: each takes a GPU of its own" in one["refused"] for one in made)
    assert not any("gloo" in thread for one in made for thread in one["threads"]), "it may abort at its end"
    assert (tmp_path / "line.pt").is_file()
    assert len((tmp_path / "line.csv").read_text().splitlines()) == 2


def test_processes_meet_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to "cuda" before goes to the first GPU in all of them."""

    def compositor(training: Training, seed: int) -> Compositor:
        raise InvalidInput(f"met: {PartialState._shared_state != {}}")

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(Training, "compositor", compositor)
    with pytest.raises(InvalidInput, match="met: True"):
        Training(RECIPES["tiny"], tmp_path, tmp_path, None, torch.device("cpu")).run("autoencoder")


def test_normalising_latents_changes_no_picture() -> None:
    torch.manual_seed(0)
    recipe = RECIPES["tiny"]
    vae = autoencoder.build(recipe.autoencoder, recipe.size).eval()
    images = torch.rand(16, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mode()).sample
        autoencoder.normalise_latents(vae, images)
        z = vae.encode(images).latent_dist.mode()
        after = vae.decode(z).sample
    # float32 rounding through two layers that now scale and unscale by the deviations
    assert float((after - before).abs().max()) < 1e-4
    assert z.std((0, 2, 3)).tolist() == pytest.approx([1] * 4, abs=1e-3)
    assert z.mean((0, 2, 3)).tolist() == pytest.approx([0] * 4, abs=1e-3)


def test_timesteps_favour_where_shapes_are_decided_and_reach_both_ends() -> None:
    drawn = text_to_image.Timesteps(16).draw(20_000, generator())
    assert int(drawn.min()) < 10
    assert int(drawn.max()) >= 995
    decisive = ((drawn >= 500) & (drawn < 900)).float().mean()
    noisiest = (drawn >= 900).float().mean()
    assert 0.46 < float(decisive) < 0.52, "of evenly drawn ones it is 0.4"
    assert 0.22 < float(noisiest) < 0.27, "of evenly drawn ones it is 0.1"


def test_every_noise_level_counts_the_same() -> None:
    """Errors ten times smaller where the noise is: weighted, both halves of the levels weigh alike."""
    balance, draws, weighed = text_to_image.Balance(), generator(0), []
    for _ in range(400):
        timestep = torch.randint(1000, (16,), generator=draws)
        size = torch.where(timestep < 500, 0.5, 0.05)
        error = (size * 2 * torch.rand(16, generator=draws)).requires_grad_()
        loss = balance(error, timestep)
        loss.backward()
        share = error.grad * error.detach()
        weighed.append((float(share[timestep < 500].sum()), float(share.sum()), float(loss.detach())))
    early, whole, losses = torch.tensor(weighed[100:]).mean(0).tolist()
    assert early / whole == pytest.approx(0.5, abs=0.05)
    assert losses == pytest.approx(0.275, rel=0.1), "the loss is as large as the errors are"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_error_spoils_no_later_loss(bad: float) -> None:
    balance, clean = text_to_image.Balance(), text_to_image.Balance()
    timestep = torch.tensor([10, 20, 700])
    assert not torch.isfinite(balance(torch.tensor([0.5, bad, 0.1]), timestep))
    clean(torch.tensor([0.5, 0.1]), timestep[[0, 2]])
    assert balance(torch.tensor([0.4, 0.6, 0.2]), timestep) == clean(torch.tensor([0.4, 0.6, 0.2]), timestep)


def test_the_target_is_the_mean_of_what_the_noisy_latent_may_be() -> None:
    z = torch.randn(2, 4, 3, 3, generator=generator(0))
    alike = torch.randn(2, 5, 4, 3, 3, generator=generator(1))
    noise = torch.randn(z.shape, generator=generator(2))

    def target(signal: float, sigma: float) -> torch.Tensor:
        levels = (torch.full((2, 1, 1, 1), value) for value in (signal, sigma))
        return text_to_image.expected(z, alike, signal * z + sigma * noise, *levels)

    torch.testing.assert_close(target(0.999, 0.045), z)  # hardly any noise: itself
    everything = torch.cat([z[:, None], alike], 1)
    torch.testing.assert_close(target(0.0, 1.0), everything.mean(1))  # nothing but noise: any of them
    # In between it is Bayes' mean over equally likely latents, here computed one by one.
    noisy = 0.3 * z + 0.95 * noise
    for i in range(2):
        odds = [math.exp(-float((noisy[i] - 0.3 * x).square().sum()) / (2 * 0.95**2)) for x in everything[i]]
        mean = sum(p * x for p, x in zip(odds, everything[i], strict=True)) / sum(odds)
        torch.testing.assert_close(target(0.3, 0.95)[i], mean, rtol=1e-3, atol=1e-4)


def test_timesteps_of_a_batch_are_spread() -> None:
    halves = [(text_to_image.Timesteps(16).draw(320, generator(seed)) < 630).sum() for seed in range(40)]
    spread = float(torch.stack(halves).float().std())
    assert spread < 7, "320 independent draws would differ by 8.4"


def test_the_whole_recipe_runs_and_plain_diffusers_loads_what_it_makes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from bld.training import run

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    model, sheets = tmp_path / "run" / "model", tmp_path / "sheets"
    monkeypatch.setattr(run, "vocabulary", lambda: NAMES)
    for piece in (DDIMScheduler, CLIPImageProcessorPil):  # its part has others
        with monkeypatch.context() as killed:
            killed.setattr(piece, "save_pretrained", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run.start("all", recipe="tiny", data=data, folder=tmp_path / "run", samples=None)
    run.start("all", recipe="tiny", data=data, folder=tmp_path / "run", samples=None)
    assert len(list((model / "ranker").iterdir())) == 5
    for exam, edits, candidates in (("sheet", len(NAMES), 4), ("paper", len(NAMES), 8), ("colours", 4, 4)):
        report = json.loads((tmp_path / "run" / f"{exam}.json").read_text())
        assert report["edits"] == edits
        assert [len(found) for _, found in report["verdicts"]] == [candidates] * edits
        assert 0 <= report["top_1"] <= report["top_5"] <= 1
        with Image.open(tmp_path / "run" / f"{exam}.png") as sheet:
            assert sheet.width > 0
    run.start("sheet", recipe="tiny", data=data, folder=sheets, samples=None, start_from=str(model))
    reports = sorted(file.name for file in sheets.glob("*.json"))
    assert reports == ["colours.json", "paper.json", "sheet.json"]
    for name in reports:
        assert (sheets / name).read_text() == (tmp_path / "run" / name).read_text()
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    for config in model.rglob("*.json"):
        assert str(tmp_path) not in config.read_text(), f"{config.name} names a folder of this machine"
    image = pipeline("a ball", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    ranked_by_its_own_ranker(model)
    weights = list((tmp_path / "run" / "autoencoder").glob("*.safetensors"))
    made = weights[0].stat().st_mtime_ns
    run.start("all", recipe="tiny", data=data, folder=tmp_path / "run", samples=None)
    assert weights[0].stat().st_mtime_ns == made, "a part that was done ran again"
    goes_on(data, tmp_path / "on", model)


def ranked_by_its_own_ranker(model: Path) -> None:
    """An editor takes the ranker in the model's folder unless told otherwise."""
    from bld import Editor

    editor = Editor.from_pretrained(str(model), device="cpu")
    photo, mask = np.full((64, 64, 3), 99, np.uint8), np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    result = editor.edit(photo, mask, "a ball", candidates=3, seed=0, steps=2)
    assert result.ranker == f"{model}/ranker"
    scores = [candidate.score or -2 for candidate in result.candidates]
    assert len(set(scores)) == 3
    assert scores == sorted(scores, reverse=True)
    assert Editor.from_pretrained(str(model), ranker="none", device="cpu").ranker is None


def goes_on(data: Path, folder: Path, model: Path) -> None:
    """A run that starts from a model begins with its weights and reads by its text encoder, or by its own."""
    from safetensors.torch import load_file, save_file

    from bld.training.run import start

    def apart(of: str, part: str = "unet") -> float:
        before, after = (load_file(next((f / part).glob("*.safetensors"))) for f in (model, folder))
        return max(float((before[key].float() - after[key]).abs().max()) for key in before if of in key)

    def go_on(part: str = "text-to-image", into: Path = folder, model: Path | str = model) -> None:
        start(part, recipe="tiny", data=data, folder=into, samples=64, start_from=str(model))  # type: ignore[arg-type]

    go_on()
    assert 0 < apart("") < 0.02, "eight steps move a weight by a few thousandths at most"
    assert (folder / "tokenizer/vocab.json").read_text() == (model / "tokenizer/vocab.json").read_text()
    for name, message in (("mini", "its sizes are not those"), (str(data), "not the folder of a model")):
        with pytest.raises(InvalidInput, match=message):
            go_on(into=folder.with_name("no"), model=name)
        left = [path.name for path in folder.with_name("no").iterdir()]
        assert left == [".text-to-image.lock"], "nothing of another model stays behind"
    for part in ("ranker", "judge"):
        go_on(part)
        assert 0 < apart("weight", part) < 0.05, "four steps of a larger rate"
        shutil.rmtree(folder / part)
        (folder / f"{part}.pt").unlink()
        with pytest.raises(
            InvalidInput, match=f"cannot start from .*{part}: the recipe's {part} has another"
        ):
            go_on(part, into=folder.with_name(f"no {part}"), model="mini")
    with pytest.raises(InvalidInput, match="the recipe's vae has another"):
        go_on("autoencoder", into=folder.with_name("no vae"), model="mini")
    shutil.rmtree(folder)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    go_on("text-encoder")
    go_on()
    assert apart("attn2.to_k") > 0.9, "another text encoder: what reads it begins anew"
    assert apart("conv_in") < 0.02
    (folder / "text_to_image.pt").unlink()
    (folder / "autoencoder" / "config.json").write_text("{}")
    with pytest.raises(InvalidInput, match="has another autoencoder"):
        go_on()


def test_a_caption_that_is_right_as_well_counts_neither_way() -> None:
    """Names 0 and 1, each plain; 0 in colours 2 and 5 beside them."""
    choices = ranker.Choices(torch.tensor([0, 1, 0, 0]), torch.tensor([-1, -1, 2, 5]))
    logits = torch.tensor([[0.3, 0.1, 0.9, 0.5]])

    def against(target: int, *wrong: int) -> float:
        return float(-logits[0, [target, *wrong]].log_softmax(0)[0])

    for name, colour, expected in (
        (0, 2, against(2, 1, 3)),  # "a blue guitar": not "a red guitar"; "a guitar" is right too
        (0, -1, against(0, 1)),  # its own colour may be any
        (1, -1, against(1, 0, 2, 3)),
    ):
        found = choices.loss(logits, torch.tensor([name]), torch.tensor([colour]))
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    from bld.training.run import start

    with pytest.raises(InvalidInput, match="choose one of cpu, gpu, tiny"):
        start("all", recipe="huge", data=tmp_path, folder=tmp_path, samples=None)
    with pytest.raises(InvalidInput, match="no training data at"):
        start("autoencoder", recipe="tiny", data=tmp_path, folder=tmp_path / "run", samples=None)
    with pytest.raises(InvalidInput, match="run bld train autoencoder first"):
        start("text-to-image", recipe="tiny", data=tmp_path, folder=tmp_path / "run", samples=None)
    with pytest.raises(InvalidInput, match="--samples goes with a part that trains"):
        start("export", recipe="tiny", data=tmp_path, folder=tmp_path / "run", samples=5)
    with pytest.raises(InvalidInput, match="--start-from goes with autoencoder"):
        start("pixels", recipe="tiny", data=tmp_path, folder=tmp_path, samples=None, start_from="mini")
    with pytest.raises(InvalidInput, match="choose one of"):
        start("everything", recipe="tiny", data=tmp_path, folder=tmp_path, samples=None)  # type: ignore[arg-type]


def test_the_ranker_is_shown_the_edit_on_black_its_box_and_the_whole() -> None:
    """Each of the three views of `bld.rank`, in about a third of the pictures."""
    from bld.training.ranker import views

    image = torch.full((96, 3, 32, 32), 0.5)
    image[:, :, 8:16, 8:24] = 1
    box = torch.tensor([[0.25, 0.25, 0.5, 0.75]]).expand(96, 4)
    seen = views(image, box, 32, generator(0))[:, 0]
    corner = seen[:, 0, 0]
    masked, whole, boxed = corner < 0.01, (corner - 0.5).abs() < 0.01, corner > 0.7
    assert (masked | whole | boxed).all()
    assert all(20 <= int(kind.sum()) <= 44 for kind in (masked, boxed, whole)), "96 draws of one in three"
    assert (seen[boxed] > 0.7).all()
    assert (seen[masked].amax((1, 2)) > 0.99).all()
    shapes = {int((picture > 0).sum()) for picture in seen[masked]}
    assert len(shapes) == 2, "an ellipse or a rectangle"
