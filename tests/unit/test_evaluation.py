"""The evaluation: every metric on a case whose answer is known, and runs that can be stopped anywhere."""

import csv
import io
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import signal as filters
from scipy import stats
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from bld import EditOptions, Editor, InvalidInput, ModelUnavailable
from bld.apps.contest import open_suite
from bld.classify import label_index, likeliest, load_classifier
from bld.evaluation import metrics, ranking, report
from bld.evaluation.distance import ALEXNET, POOLED, SCALE, SHIFT, ClassifierDistance, Lpips, between
from bld.evaluation.methods import ByEditor, Folder, Function
from bld.evaluation.run import Judges, measured, rows, run, settle
from bld.evaluation.suite import Case, Suite, build, mini, read_labels
from bld.evaluation.timing import parameters, timed
from bld.images import Photograph, save_png
from bld.masks import Box
from bld.models.load import BUNDLED
from bld.training.vocabulary import vocabulary
from tests.tiny import GaussianModel

RNG = np.random.default_rng(0)
PHOTOS = [RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(3)]
LABELS = [("red", "a red wall"), ("green", "a green wall"), ("blue", "a blue wall")]


class Colours:
    """A classifier that is right by construction: the colour of the mask's mean."""

    name, revision = "colours", "1"
    labels = ("red", "green", "blue", "white", "black", "grey")

    def view(self, picture: Any, mask: Any) -> torch.Tensor:
        return torch.from_numpy(picture[mask > 0].mean(0)).view(1, 3, 1, 1)

    def probabilities(self, view: torch.Tensor) -> Any:
        red, green, blue = view.flatten().tolist()
        whites = [min(red, green, blue), 1 - max(red, green, blue), 0.0]
        return np.array([red - green, green - red + 0.1, blue - red, *whites], np.float32)

    def features(self, view: torch.Tensor) -> list[torch.Tensor]:
        return [view]


JUDGES = Judges(Colours(), ClassifierDistance(Colours()))


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    photographs = ((f"p{i}", Photograph(pixels)) for i, pixels in enumerate(PHOTOS))
    return build(photographs, LABELS, tmp_path / "suite", name="three")


def painted(pixels: Any, mask: Any, prompt: str, seed: int) -> list[Any]:
    """A method that paints the prompt's colour first and grey after that."""
    colour = {"red": (255, 9, 9), "green": (9, 255, 9), "blue": (9, 9, 255)}[prompt.split()[1]]
    return [np.where(mask[..., None] > 0, c, pixels).astype(np.uint8) for c in (colour, (90, 90, 90))]


class Painter:
    name = "painter"

    def __init__(self, colours: str = "bright") -> None:
        self.facts = {"colours": colours}

    def edit(self, photograph: Photograph, mask: Any, case: Case) -> Any:
        return painted(photograph.pixels, mask, case.prompt, case.seed)


# --- the suite ---


def test_a_suite_comes_back_as_it_was_written(suite: Suite) -> None:
    again = Suite.read(suite.folder)
    assert again == suite
    assert sorted(case.label for case in suite.cases) == ["blue", "green", "red"]
    for case, pixels in zip(again.cases, PHOTOS, strict=True):
        np.testing.assert_array_equal(again.open(case).pixels, pixels)
        assert case.mask((64, 64)).sum() == case.box.height * case.box.width
    assert again.first(2).cases == suite.cases[:2]


def test_another_photograph_is_refused(suite: Suite) -> None:
    save_png(suite.folder / suite.cases[1].photograph, PHOTOS[0])
    with pytest.raises(InvalidInput, match="another picture"):
        suite.open(suite.cases[1])
    (suite.folder / "suite.json").write_text('{"format": 9}')
    with pytest.raises(InvalidInput, match="not the manifest"):
        Suite.read(suite.folder)


def test_labels_are_lines(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("tabby cat\n\nowl\tan owl\n")
    assert read_labels(file) == [("tabby cat", "tabby cat"), ("owl", "an owl")]
    file.write_text("\n")
    with pytest.raises(InvalidInput, match="no class"):
        read_labels(file)


def test_the_mini_suite_is_the_same_wherever_it_is_built(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    first, second = (mini("mini", tmp_path / name, LABELS) for name in "ab")
    assert first.cases == second.cases
    assert len(first.cases) == 50
    assert mini("mini", tmp_path / "a", LABELS) == first, "what is there is read"


def test_the_mini_suite_asks_for_the_vocabulary_whoever_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)
    suite = open_suite("mini")
    names = {thing.name: thing.phrase() for thing in vocabulary()}
    assert len({case.label for case in suite.cases}) == 50
    assert all(names[case.label] == case.prompt for case in suite.cases)
    first = ["jack-o-lantern", "umbrella", "orange", "pizza"]
    assert [case.label for case in suite.cases[:4]] == first, "as those of docs/reproduce.md"
    bundled = load_classifier("auto")
    Judges(bundled, ClassifierDistance(bundled)).check(suite)
    with pytest.raises(ModelUnavailable, match=r"no label .*, which the suite asks for"):
        JUDGES.check(suite)


def test_a_suite_needs_a_class(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no class to draw from"):
        build([("p", Photograph(PHOTOS[0]))], [], tmp_path / "suite", name="none")


def test_the_longer_mini_suite_begins_as_the_shorter(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    short, long = (mini(name, tmp_path / name, LABELS) for name in ("mini", "mini-200"))
    assert len(long.cases) == 200
    assert long.cases[:50] == short.cases
    assert len({case.sha256 for case in long.cases}) == 200


# --- the metrics ---


def test_precision_counts_the_prompted_class_among_the_five_likeliest() -> None:
    red = np.zeros((8, 8, 3), np.float32)
    red[..., 0] = 1
    mask = np.ones((8, 8), np.float32)
    assert metrics.place(Colours(), red, mask, "red") == 0
    assert metrics.place(Colours(), red, mask, "blue") == 5
    found = [{"place": [0, 5], **EMPTY}, {"place": [5, 4], **EMPTY}]
    total = report.summary("m", found)
    assert (total.batch_precision, total.top_precision) == (50.0, 50.0)
    assert report.summary("m", [{"place": [4, 5, 5, 5], **EMPTY}]).batch_precision == 25


EMPTY: dict[str, Any] = {
    "diversity": None, "background_max_error": [0.0], "background_psnr": [None], "seam": [None],
    "clipped": [0.0], "isolated": [0.0],
}  # fmt: skip


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9), st.integers(1, 9))
def test_the_likeliest_come_first(shares: list[float], k: int) -> None:
    order = likeliest(np.array(shares, np.float32), k)
    assert len(order) == min(k, len(shares))
    assert [shares[i] for i in order] == sorted(shares, reverse=True)[:k]


def test_a_label_may_be_a_list_of_synonyms() -> None:
    assert label_index(["dog", "tabby, tabby cat"], "tabby cat") == 1
    with pytest.raises(ModelUnavailable, match="no label 'cat'"):
        label_index(["dog", "tabby, tabby cat"], "cat")


def test_another_background_is_no_diversity() -> None:
    """The bundled judge looks at the square around the mask's box, which is wider than the edit."""
    distance, draws = ClassifierDistance(load_classifier("auto")), np.random.default_rng(0)
    mask = np.zeros((96, 96), np.float32)
    mask[20:80, 40:60] = 1
    one, two, third = draws.random((3, 96, 96, 3)).astype(np.float32)
    two[mask > 0] = one[mask > 0]
    assert metrics.diversity(distance, [one, two], mask) == 0
    assert metrics.diversity(distance, [one, third], mask) > 0


def test_diversity_is_the_mean_over_pairs() -> None:
    class Apart:
        name = "apart"

        def features(self, picture: Any, mask: Any) -> Any:
            return picture

        def between(self, a: Any, b: Any) -> float:
            return abs(a - b)

    assert metrics.diversity(Apart(), [1.0, 2.0, 4.0], None) == 2.0  # type: ignore[arg-type, list-item]
    assert metrics.diversity(Apart(), [1.0], None) is None  # type: ignore[arg-type, list-item]


def test_clipped_values_and_lone_dots() -> None:
    picture, mask = np.full((10, 10, 3), 100, np.uint8), np.zeros((10, 10), np.float32)
    mask[:, :5] = 1
    picture[4, 2], picture[4, 7] = 255, 255  # the second one is outside
    picture[8:, :2, 0] = 0
    assert metrics.clipped(picture, mask) == pytest.approx((3 + 4) / 150)
    assert metrics.isolated(picture, mask) == pytest.approx(1 / 50), "an area of four is no lone dot"


@given(st.integers(0, 60), st.integers(1, 60))
def test_intervals_and_tests_agree_with_scipy(hits: int, count: int) -> None:
    hits = min(hits, count)
    found = stats.binomtest(hits, count)
    assert metrics.binomial(hits, count) == pytest.approx(found.pvalue)
    interval = found.proportion_ci(method="wilson")
    assert metrics.wilson(hits, count) == pytest.approx((interval.low, interval.high), abs=1e-6)


# --- LPIPS, beside an independent computation ---


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Random weights of the real shapes and names."""
    folder, generator = tmp_path_factory.mktemp("lpips"), torch.Generator().manual_seed(0)
    alexnet, heads = {}, {}
    for layer, (place, channels, width, kernel, _, _) in enumerate(ALEXNET):
        spread = (channels * kernel**2) ** -0.5
        shape = (width, channels, kernel, kernel)
        alexnet[f"features.{place}.weight"] = spread * torch.randn(shape, generator=generator)
        alexnet[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=generator)
        heads[f"lin{layer}.model.1.weight"] = torch.rand((1, width, 1, 1), generator=generator)
    save_file(alexnet, folder / "alexnet.safetensors")
    torch.save(heads, folder / "alex.pth")
    return folder / "alexnet.safetensors", folder / "alex.pth"


def slow_features(weights: dict[str, torch.Tensor], image: np.ndarray) -> list[np.ndarray]:
    """AlexNet's activations by scipy's correlation and plain loops; image: 3 h w in [-1, 1]."""
    x = (image - np.array(SHIFT)[:, None, None]) / np.array(SCALE)[:, None, None]
    found = []
    for layer, (place, _, width, _, stride, padding) in enumerate(ALEXNET):
        if layer in POOLED:
            windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
            x = windows[:, ::2, ::2].max(axis=(3, 4))
        weight = weights[f"features.{place}.weight"].numpy()
        bias = weights[f"features.{place}.bias"].numpy()
        padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
        maps = [
            sum(filters.correlate2d(c, k, "valid") for c, k in zip(padded, weight[o], strict=True)) + bias[o]
            for o in range(width)
        ]
        x = np.maximum(np.array(maps)[:, ::stride, ::stride], 0)
        found.append(x)
    return found


def test_lpips_is_what_its_definition_says(lpips_files: tuple[Path, Path]) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.random((35, 35, 3)).astype(np.float32) for _ in range(2))
    mask = np.zeros((35, 35), np.float32)
    mask[3:30, 5:33] = 1
    weights, heads = load_file(lpips_files[0]), torch.load(lpips_files[1], weights_only=True)
    expected = 0.0
    pair = [slow_features(weights, (p * mask[..., None]).transpose(2, 0, 1) * 2 - 1) for p in (a, b)]
    for layer, (x, y) in enumerate(zip(*pair, strict=True)):
        x, y = (f / np.sqrt((f**2).sum(0) + 1e-20) for f in (x, y))
        head = heads[f"lin{layer}.model.1.weight"].numpy().ravel()
        expected += float(((x - y) ** 2 * head[:, None, None]).sum(0).mean())
    lpips = Lpips(*lpips_files)
    found = lpips.between(lpips.features(a, mask), lpips.features(b, mask))
    assert found == pytest.approx(expected, rel=1e-4)  # float32 against float64
    assert lpips.between(lpips.features(a, mask), lpips.features(a, mask)) == 0
    outside = a + (1 - mask[..., None])
    assert lpips.between(lpips.features(a, mask), lpips.features(outside, mask)) == 0


def test_lpips_is_a_loss_too(lpips_files: tuple[Path, Path]) -> None:
    """Of tensors it is the same distance, picture by picture, and black keeps a gradient."""
    rng, mask = np.random.default_rng(2), np.ones((64, 64), np.float32)
    shown = [rng.random((64, 64, 3)).astype(np.float32) for _ in range(3)]
    lpips = Lpips(*lpips_files)
    one, *others = (torch.from_numpy(p).permute(2, 0, 1)[None] * 2 - 1 for p in shown)
    y = torch.cat(others).requires_grad_(True)
    found = lpips(y, one)
    first, *rest = (lpips.features(p, mask) for p in shown)
    # Batches of convolutions add up in another order.
    assert found.tolist() == pytest.approx([lpips.between(f, first) for f in rest], rel=1e-4)
    black = torch.full_like(one, -1.0).requires_grad_(True)
    for x in (y, black):
        (gradient,) = torch.autograd.grad(lpips(x, one).sum(), x)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_lpips_names_what_is_missing(lpips_files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="lin0"):
        Lpips(lpips_files[0], lpips_files[0])
    (tmp_path / "a.pth").write_bytes(b"nonsense")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        Lpips(tmp_path / "a.pth", lpips_files[1])


def test_unweighted_distance_of_opposite_features() -> None:
    x = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    y = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    assert between([x], [y]).tolist() == pytest.approx([1.0])  # (1 + 1) / 2 channels
    assert between([x], [3 * x]).tolist() == pytest.approx([0.0])


# --- the bundled judge ---


def test_the_judge_shares_no_weights_with_the_ranker_or_the_model() -> None:
    """By shape and value: no tensor of one is a tensor of another, scalars and counters aside."""
    judge = load_file(BUNDLED / "mini/judge/model.safetensors")
    for other in ("ranker", "unet", "vae", "text_encoder"):
        (file,) = (BUNDLED / "mini" / other).glob("*.safetensors")
        for name, tensor in load_file(file).items():
            alike = [n for n, t in judge.items() if t.numel() > 64 and t.shape == tensor.shape]
            same = [n for n in alike if torch.equal(judge[n], tensor)]
            assert not same, f"{other} {name} is the judge's {same}"


def test_the_judge_looks_at_the_box_and_finds_a_name() -> None:
    judge = load_classifier("auto")
    picture = np.random.default_rng(0).random((128, 128, 3)).astype(np.float32)
    mask = np.zeros((128, 128), np.float32)
    mask[20:90, 40:100] = 1
    view = judge.view(picture, mask)
    assert view.shape == (1, 3, 96, 96)
    shares = judge.probabilities(view)
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    assert {"owl", "background"} < set(judge.labels)
    far = picture.copy()
    far[100:] = 0  # below the square around the box
    assert torch.equal(judge.view(far, mask), view)
    wide = np.concatenate([picture, picture[:, :64]], 1)  # a square of pixels, whatever the photograph's
    np.testing.assert_allclose(judge.view(wide, np.pad(mask, ((0, 0), (0, 64)))), view, atol=1e-4)
    assert [f.ndim for f in judge.features(view)] == [4] * len(judge.features(view))


def test_the_judge_sees_all_pixels_of_a_large_photograph() -> None:
    """Stripes of a pixel are grey from afar, and no moiré."""
    stripes = np.zeros((1000, 1200, 3), np.float32)
    stripes[:, ::2] = 1
    mask = np.zeros((1000, 1200), np.float32)
    mask[100:900, 200:950] = 1
    view = load_classifier("auto").view(stripes, mask)
    assert view.abs().max() < 0.3, "from -1 to 1, where it was black and white"


def tiny_classifier(kind: str, folder: Path) -> Path:
    """A classifier of 32 px with random weights, whose preprocessing crops the middle."""
    if kind == "convnext":
        network: Any = ConvNextForImageClassification(
            ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, num_labels=3)
        )
        processor: Any = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    elif kind == "vit":
        network = ViTForImageClassification(
            ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                      image_size=32, patch_size=8, num_labels=3)
        )  # fmt: skip
        crop = {"height": 32, "width": 32}
        processor = ViTImageProcessorPil(size={"shortest_edge": 36}, do_center_crop=True, crop_size=crop)
    else:
        network = EfficientNetForImageClassification(
            EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, num_labels=3)
        )
        crop = {"height": 32, "width": 32}
        processor = EfficientNetImageProcessorPil(
            size={"height": 40, "width": 40}, do_center_crop=True, crop_size=crop
        )
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["convnext", "vit", "efficientnet"])
def test_a_classifier_sees_an_edit_at_the_side(kind: str, tmp_path: Path) -> None:
    """Its own preprocessing would cut it away and have it judge black."""
    classifier = load_classifier(str(tiny_classifier(kind, tmp_path)), device="cpu")
    picture, mask = np.full((40, 160, 3), 0.7, np.float32), np.zeros((40, 160), np.float32)
    mask[:, :10] = 1
    seen, black = classifier.view(picture, mask), classifier.view(0 * picture, mask)
    assert seen.shape == (1, 3, 32, 32)
    apart = (seen - black).abs().amax((0, 1))
    assert float(apart[:, :2].min()) > 0.5 * float(apart.max()) > 0
    assert float(apart[:, 16:].max()) == 0
    assert classifier.probabilities(seen).sum() == pytest.approx(1, abs=1e-5)


def test_a_classifier_that_crops_nothing_sees_what_its_preprocessing_gives(tmp_path: Path) -> None:
    tiny_classifier("vit", tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    classifier = load_classifier(str(tmp_path), device="cpu")
    picture, mask = PHOTOS[0][:48].astype(np.float32) / 255, np.ones((48, 64), np.float32)
    own = ViTImageProcessorPil.from_pretrained(tmp_path)(images=PHOTOS[0][:48], return_tensors="pt")
    assert torch.equal(classifier.view(picture, mask), own.pixel_values)


@pytest.mark.parametrize("height", [1, 3, 4])
def test_a_picture_of_few_rows_has_its_channels_last(height: int, tmp_path: Path) -> None:
    classifier = load_classifier(str(tiny_classifier("vit", tmp_path)), device="cpu")
    picture = np.zeros((height, 40, 3), np.float32)
    picture[..., 0] = 1
    red, green, blue = classifier.view(picture, picture[..., 0])[0].mean((1, 2)).tolist()
    assert red > 0.9 > -0.9 > green == blue


@pytest.mark.parametrize("name", ["nowhere", str(BUNDLED / "mini/unet")])
def test_what_is_no_classifier_is_refused(name: str) -> None:
    with pytest.raises(ModelUnavailable):
        load_classifier(name)


# --- runs ---


def test_a_run_measures_what_was_painted(suite: Suite, tmp_path: Path) -> None:
    run(suite, Painter(), JUDGES, tmp_path / "run")
    found = rows(suite, "painter", tmp_path / "run")
    assert all(row["place"][0] == 0 for row in found)
    assert all(row["background_max_error"] == [0, 0] for row in found)
    assert all(row["clipped"] == [pytest.approx(1 / 3), 0.0] for row in found)
    total = report.summary("painter", found)
    assert total.top_precision == 100
    assert total.background_psnr is None


class Stop(BaseException):
    pass


@given(st.lists(st.integers(1, 5), max_size=10))
def test_a_run_that_is_killed_anywhere_and_goes_on_gives_the_same_report(
    tmp_path_factory: pytest.TempPathFactory, kills: list[int]
) -> None:
    """Killed while it edits and while it writes: what is there is whole, and is not made again."""
    folder = tmp_path_factory.mktemp("run")
    photographs = [(f"p{i}", Photograph(pixels)) for i, pixels in enumerate(PHOTOS)]
    suite = build(photographs, LABELS, folder / "suite", name="three")
    settings = {"suite": str(suite.folder), "cases": 3, "classifier": "colours", "distance": "features"}
    run(suite, Painter(), JUDGES, folder / "whole")
    report.write(suite, ["painter"], settings, folder / "whole")

    class Killed(Painter):
        left = 0

        def edit(self, photograph: Photograph, mask: Any, case: Case) -> Any:
            self.left -= 1
            if self.left == 0:
                raise Stop
            return super().edit(photograph, mask, case)

    method = Killed()
    for kill in kills:
        method.left = kill
        try:
            run(suite, method, JUDGES, folder / "killed")
        except Stop:
            continue
    method.left = 0
    run(suite, method, JUDGES, folder / "killed")
    report.write(suite, ["painter"], settings, folder / "killed")
    for name in ("report.md", "report.csv", "report.html"):
        assert (folder / "killed" / name).read_text() == (folder / "whole" / name).read_text()


# From Python 3.12 on a fork beside threads warns; the child computes on one thread and waits for no other.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_killed_ten_times_gives_the_same_report(suite: Suite, tmp_path: Path) -> None:
    """By SIGKILL, at any moment; it goes on each time, and is left alone the eleventh time."""

    class Slow(Painter):
        name = "painter"

        def edit(self, photograph: Photograph, mask: Any, case: Case) -> Any:
            time.sleep(0.02)
            return super().edit(photograph, mask, case)

    settings = {"suite": str(suite.folder), "cases": 3, "classifier": "colours", "distance": "features"}
    moments, killed = random.Random(0), 0
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run(suite, Painter(), JUDGES, whole)
    report.write(suite, ["painter"], settings, whole)
    while killed < 10:
        for row in list((torn / "painter").glob("*.json"))[1:]:
            row.unlink()  # or there would be nothing left to kill soon
        child = os.fork()
        if child == 0:
            run(suite, Slow(), JUDGES, torn)
            os._exit(0)
        time.sleep(moments.uniform(0, 0.09))
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    run(suite, Painter(), JUDGES, torn)
    report.write(suite, ["painter"], settings, torn)
    for name in ("report.md", "report.csv", "report.html"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes()
    assert {p.name for p in (torn / "painter").iterdir()} >= {f"{i:03d}.json" for i in range(3)}


def test_the_order_of_candidates_is_judged_by_its_ends() -> None:
    """Ten candidates: a fifth is two. Places below five show the class."""
    found = [{"place": [0, 9, 0, 0, 0, 9, 9, 9, 9, 9]}, {"place": [9, 9, 9, 9, 9, 0, 0, 0, 0, 0]}]
    assert ranking.ranked("m", found) == ranking.Ranked("m", first=50, top=25, bottom=50, all=45)
    assert ranking.ranked("m", [{"place": [0]}]) is None
    assert [ranking.fifth(count) for count in (1, 4, 10, 24, 64)] == [1, 1, 2, 5, 13]


def test_pictures_of_more_than_a_hundred_candidates_keep_their_order(suite: Suite, tmp_path: Path) -> None:
    folder = tmp_path / "painter" / "000"
    folder.mkdir(parents=True)
    for number in range(120):
        save_png(folder / f"{number:02d}.png", np.full((64, 64, 3), number, np.uint8))
    top, bottom = ranking.shown(tmp_path, "painter", 0, 30)
    assert [int(file.stem) for file in (*top, *bottom)] == [*range(24), *range(96, 120)]
    case = suite.cases[0]
    made = Folder(tmp_path / "painter", "x").edit(suite.open(case), case.mask((64, 64)), case)
    assert [picture[0, 0, 0] for picture in made] == [*range(120)]


def test_the_sheet_of_a_ranking_has_both_ends(suite: Suite, tmp_path: Path) -> None:
    run(suite, Painter(), JUDGES, tmp_path)
    top, bottom = ranking.shown(tmp_path, "painter", 1, 3)
    assert [file.name for file in (*top, *bottom)] == ["00.png", "01.png"]


def test_rows_of_other_settings_do_not_mix(tmp_path: Path) -> None:
    settle(tmp_path, {"suite": "a", "cases": 3})
    settle(tmp_path, {"suite": "a", "cases": 3})
    with pytest.raises(InvalidInput, match="begun with cases 3, not 4"):
        settle(tmp_path, {"suite": "a", "cases": 4})


def test_rows_of_other_weights_do_not_go_under_a_methods_name(suite: Suite, tmp_path: Path) -> None:
    run(suite, Painter(), JUDGES, tmp_path)
    run(suite, Painter(), JUDGES, tmp_path)
    with pytest.raises(InvalidInput, match="painter was begun with colours 'bright', not 'pale'"):
        run(suite, Painter("pale"), JUDGES, tmp_path)


def test_a_folders_rows_are_of_its_own_pictures(suite: Suite, tmp_path: Path) -> None:
    for name in "ab":
        run(suite, Painter(), JUDGES, tmp_path / name)
    a, b = (tmp_path / name / "painter" for name in "ab")
    run(suite, Folder(a, "x"), JUDGES, tmp_path / "run")
    with pytest.raises(InvalidInput, match=r"x was begun with folder .*a/painter', not .*b/painter'"):
        run(suite, Folder(b, "x"), JUDGES, tmp_path / "run")
    save_png(a / "000/00.png", PHOTOS[0])
    with pytest.raises(InvalidInput, match="x was begun with revision"):
        run(suite, Folder(a, "x"), JUDGES, tmp_path / "run")


def test_an_editors_rows_are_of_its_weights_and_its_own_settings(suite: Suite, tmp_path: Path) -> None:
    first = suite.first(1)

    def made(options: EditOptions, **other: Any) -> None:
        model = GaussianModel()
        for name, value in other.items():
            setattr(model, name, value)
        run(first, ByEditor(Editor(model), options), JUDGES, tmp_path)

    made(EditOptions(candidates=1))
    made(EditOptions(candidates=1, steps=GaussianModel.steps))  # what it runs anyway
    with pytest.raises(InvalidInput, match="begun with revision 'exact', not 'trained on'"):
        made(EditOptions(candidates=1), revision="trained on")
    with pytest.raises(InvalidInput, match="begun with steps 50, not 10"):
        made(EditOptions(candidates=1), steps=10)
    with pytest.raises(InvalidInput, match="begun with candidates 1, not 2"):
        made(EditOptions(candidates=2))


def test_what_is_settled_comes_back_from_the_file(tmp_path: Path) -> None:
    for _ in range(2):
        settle(tmp_path, {"lora": ("a:0.5", "b")})


def test_a_missing_row_is_named(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no row of that case"):
        rows(suite, "painter", tmp_path)


def test_rows_of_a_suite_that_was_built_anew_are_refused(suite: Suite, tmp_path: Path) -> None:
    run(suite, Painter(), JUDGES, tmp_path)
    photographs = [(f"p{i}", Photograph(pixels)) for i, pixels in enumerate(PHOTOS)]
    other = build(photographs, LABELS, suite.folder, name="three", seed=1)
    assert [case.label for case in other.cases] != [case.label for case in suite.cases]
    assert other.revision != suite.revision
    assert Suite.read(other.folder).revision == other.revision
    with pytest.raises(InvalidInput, match="but three has"):
        rows(other, "painter", tmp_path)


def test_whoever_enters_is_measured_alike(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our editor, a folder of its pictures and a function that makes the same ones get the same rows."""
    run(suite, Painter(), JUDGES, tmp_path)
    run(suite, Folder(tmp_path / "painter", "folder"), JUDGES, tmp_path)
    run(suite, Function("tests.unit.test_evaluation:painted", "function"), JUDGES, tmp_path)
    assert rows(suite, "painter", tmp_path) == rows(suite, "folder", tmp_path)
    assert rows(suite, "painter", tmp_path) == rows(suite, "function", tmp_path)
    with pytest.raises(InvalidInput, match="no pictures"):
        Folder(tmp_path / "nowhere", "folder")
    with pytest.raises(InvalidInput, match="expected module:function"):
        Function("nowhere:painted", "function")


def test_our_editor_is_measured(suite: Suite, tmp_path: Path) -> None:
    options = EditOptions(candidates=3, steps=4)
    run(suite, ByEditor(Editor(GaussianModel()), options), JUDGES, tmp_path)
    found = rows(suite, "bld", tmp_path)
    assert [len(row["place"]) for row in found] == [3, 3, 3]
    assert all(row["background_max_error"] == [0, 0, 0] for row in found)
    assert report.summary("bld", found).top_precision == 100, "the exact model paints the prompt's colour"


def test_the_report_says_the_same_in_every_form(suite: Suite, tmp_path: Path) -> None:
    run(suite, Painter(), JUDGES, tmp_path)
    settings = {"classifier": "<b>colours</b>", "distance": "features"}
    (total,) = report.write(suite, ["painter"], settings, tmp_path)
    text, page = ((tmp_path / f"report.{kind}").read_text() for kind in ("md", "html"))
    (line,) = csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text()))
    assert float(line["top_precision"]) == total.top_precision == 100
    assert "| painter | 2 | 100.0 | 100.0 (44 to 100) |" in text
    assert "Blended Diffusion | 64 | 10.4 | 36 | 0.106" in text
    assert "other models, photographs and hardware" in text
    assert page.count("data:image/webp") == 2 * 3
    assert "http" not in page, "it needs no other file"
    assert "<b>colours" not in page


def test_times_and_parameters(suite: Suite) -> None:
    editor = Editor(GaussianModel())
    found = timed(editor, suite, candidates=(1, 2), ways=("none", "stitch"), repeats=1)
    pairs = [(1, "none"), (1, "stitch"), (2, "none"), (2, "stitch")]
    assert [(t.candidates, t.reconstruct) for t in found] == pairs
    assert all(t.seconds > 0 for t in found)
    part = torch.nn.Linear(3, 4)

    class Model:
        unet, alias = part, part

        def __init__(self) -> None:
            self.unet = self.alias = part

    assert parameters(Model()) == 16


def test_a_row_is_json_that_says_what_was_measured(suite: Suite) -> None:
    case = suite.cases[0]
    photograph = suite.open(case)
    row = measured(photograph, painted(photograph.pixels, case.mask((64, 64)), case.prompt, 0), case, JUDGES)
    assert json.loads(json.dumps(row)) == row
    assert set(row) == {"case", "label", "place", *EMPTY}
    assert isinstance(case.box, Box)
