"""The studio in a real browser: Debian's chromium, driven by playwright. Pictures of it go to build/studio.

With BLD_SCREENSHOTS=docs/images the pictures that the docs show are written there too.
"""

import json
import os
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from skimage import data

from bld import Editor, Session
from bld.apps.record import read
from bld.options import LoadOptions
from tests.tiny import GatedModel

pytest.importorskip("gradio", reason="the studio needs the extra [studio]")
sync = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="browser tests need chromium: apt-get install chromium"
)

from bld.apps.flags import LOCAL  # noqa: E402
from bld.apps.studio.canvas import read_painting  # noqa: E402
from bld.apps.studio.command import UPLOAD_MB  # noqa: E402
from bld.apps.studio.serving import Address, serve  # noqa: E402

FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
BUILD = Path(__file__).parents[2] / "build" / "studio"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
EVIL = "<img src=x onerror='window.hit=1'>"
Page = Any
Visit = Callable[..., Page]


def served(model: Any, **how: Any) -> Any:
    limits = {"max_upload_mb": how.pop("max_upload_mb", 64), "users": how.pop("users", ())}
    editor = model if isinstance(model, Editor) else Editor(model)
    with socket.socket() as probe:  # gradio's own search for a port leaves sockets open
        probe.bind(("127.0.0.1", 0))
        address = Address(LOCAL, probe.getsockname()[1], **{"max_upload_mb": UPLOAD_MB, **limits})
    return serve(editor, address, loading=LoadOptions(), ranker="auto", max_pixels=10**8, **how)


@pytest.fixture(scope="module")
def model() -> GatedModel:
    return GatedModel()


@pytest.fixture(scope="module")
def studio(model: GatedModel) -> Iterator[str]:
    """The address of a studio whose model is exact, and runs when it is let."""
    with served(model) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, studio: str, model: GatedModel, capfd: pytest.CaptureFixture[str]) -> Iterator[Visit]:
    """Open the studio, as another visitor each time. Fails on a foreign host and on an error of the page,
    of the server, or told to a visitor whom no test expects to be told."""
    contexts, wrong = [], []
    model.hold()

    def noted(request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            wrong.append(f"{request.url} is outside")

    def opened(url: str = studio, *, wait: str = ".bld-stage", **how: Any) -> Page:
        context = browser.new_context(**{"viewport": DESKTOP, "accept_downloads": True, **how})
        context.set_default_timeout(30_000)
        context.on("request", noted)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        page.wait_for_selector(wait)
        return page

    yield opened
    model.let()
    for context in contexts:
        for page in context.pages:
            wrong.extend(page.locator(".toast-body.error").all_inner_texts())
        context.close()
    assert not wrong
    said = capfd.readouterr().err
    assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "coffee.png"
    Image.fromarray(data.coffee()).save(path)  # 600 x 400
    return path


# --- what a visitor does ---


def shoot(page: Page, name: str, *, docs: bool = False, **how: Any) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"{name}.png"
    page.screenshot(path=path, animations="disabled", **how)
    if docs and os.environ.get("BLD_SCREENSHOTS"):
        with Image.open(path) as picture:
            picture.save(Path(os.environ["BLD_SCREENSHOTS"]) / f"studio-{name}.webp", quality=80, method=6)


def open_photo(page: Page, photo: Path) -> None:
    page.set_input_files("[data-testid='Open a photograph-upload-button']", photo)
    page.wait_for_selector(".bld-stage.bld-full")
    page.wait_for_selector("#bld-history img")


def drag(page: Page, *points: tuple[float, float]) -> None:
    """Press, move through points of the canvas (shares of its sides), and let go."""
    box = page.locator(".bld-stage").bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=6)
    page.mouse.up()


def painted(page: Page, size: tuple[int, int] = (400, 600)) -> Any:
    return read_painting(page.evaluate("window.bldCanvas.painting()"), size)


def press(page: Page, button: str) -> None:
    """Press a button that changes the mask, and wait for the mask that comes back."""
    before = page.locator(".bld-stage").get_attribute("data-base")
    page.click(button)
    page.wait_for_function(
        "before => document.querySelector('.bld-stage').dataset.base !== before", arg=before
    )


def status(page: Page, text: str) -> None:
    page.wait_for_selector(f"#bld-status p:has-text('{text}')")


def says(page: Page, text: str) -> None:
    """A message with that text comes up; it is closed again."""
    toast = page.locator(".toast-body", has_text=text).first
    toast.wait_for()
    toast.locator("button").first.click()


def edited(page: Page, prompt: str = "a red wall") -> None:
    page.fill("#bld-prompt textarea", prompt)
    page.click("#bld-edit")
    status(page, "Done in")
    page.wait_for_selector("#bld-gallery img")


def advanced(page: Page, **values: Any) -> None:
    if not page.locator("#bld-steps").is_visible():
        page.click("#bld-advanced button")
        page.wait_for_selector("#bld-steps")
        page.wait_for_timeout(1000)  # gradio shows fields before it listens: what is typed then is lost
    for name, value in values.items():
        page.fill(f"#bld-{name} :is(input, textarea)", str(value))


def fetched(page: Page, button: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


# --- the tests ---


def test_an_artist_edits_a_photograph_with_the_bundled_model(
    visit: Visit, photo: Path, tmp_path: Path
) -> None:
    """From the photograph to the zip, with pictures for the docs."""
    with served(Editor.from_pretrained("mini", device="cpu")) as url:
        page = visit(url)
        shoot(page, "empty")
        open_photo(page, photo)
        page.fill(".bld-size input", "65")
        drag(page, (0.86, 0.79))
        advanced(page, steps=6)
        page.click("#bld-advanced button")
        page.fill("#bld-seed :is(input, textarea)", "2")
        page.fill("#bld-prompt textarea", "a star")
        page.click("#bld-reconstruct input")
        page.click("[role='option'] >> text=poisson")
        page.click("#bld-edit")
        status(page, "left")
        page.wait_for_selector("#bld-preview img")
        shoot(page, "working")
        page.set_default_timeout(180_000)  # a network of this size beside another test has its half minutes
        status(page, "Done in")
        page.wait_for_selector("#bld-gallery img >> nth=3")
        scores = [float(text.split("score ")[1].split(" ")[0]) for text in captions(page, "#bld-gallery")]
        assert len(scores) == 4
        assert scores == sorted(scores, reverse=True)
        page.wait_for_function(
            "[...document.querySelectorAll('#bld-results img')].every(image => image.complete)"
        )
        shoot(page, "result", docs=True, full_page=True)

        page.click("#bld-gallery button.thumbnail-item >> nth=1")
        page.wait_for_selector("#bld-facts :text('Candidate 2 of 4')")
        facts = read(fetched(page, "#bld-save", tmp_path))
        assert facts["candidate"]["number"] == 1
        assert facts["candidate"]["background_max_error"] == 0
        assert facts["request"]["steps"] == 6
        assert facts["request"]["reconstruct"] == "poisson"
        page.click("#bld-repeat")
        page.wait_for_function(
            "seed => document.querySelector('#bld-seed :is(input, textarea)').value === seed",
            arg=str(facts["candidate"]["seed"]),
        )
        page.click("#bld-use")
        page.wait_for_selector("#bld-history img >> nth=1")
        assert not painted(page).mask.any()
        page.click("#bld-undo")
        page.wait_for_selector("#bld-history .thumbnail-item.selected[aria-label='Thumbnail 1 of 2']")
        page.click("#bld-redo")
        page.wait_for_selector("#bld-history .thumbnail-item.selected[aria-label='Thumbnail 2 of 2']")
        page.click("#bld-history .thumbnail-item >> nth=0")
        page.wait_for_selector("#bld-history .thumbnail-item.selected[aria-label='Thumbnail 1 of 2']")
        with zipfile.ZipFile(fetched(page, "#bld-zip", tmp_path)) as archive:
            archive.extractall(tmp_path / "home")
        session = Session.load(tmp_path / "home")
        assert session.current == 0
        assert session.revisions[1].made["prompt"] == "a star"
        np.testing.assert_array_equal(session.photograph.pixels, data.coffee())


def captions(page: Page, gallery: str) -> list[str]:
    return list(page.locator(f"{gallery} .caption-label").all_inner_texts())


def test_the_tools_paint_what_they_say(visit: Visit, photo: Path, model: GatedModel, tmp_path: Path) -> None:
    model.let()
    page = visit()
    open_photo(page, photo)
    page.click("[data-tool=rectangle]")
    drag(page, (0.25, 0.25), (0.75, 0.75))
    mask = painted(page).mask
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    np.testing.assert_allclose((rows[0], rows[-1], columns[0], columns[-1]), (100, 300, 150, 450), atol=2)
    assert (mask[102:298, 152:448] == 255).all()

    page.click("[data-tool=eraser]")
    drag(page, (0.3, 0.5), (0.7, 0.5))
    assert painted(page).mask[200, 300] == 0
    page.click("[data-do=undo]")
    np.testing.assert_array_equal(painted(page).mask, mask)
    page.click("[data-do=redo]")
    assert painted(page).mask[200, 300] == 0
    page.click("[data-do=undo]")

    press(page, "#bld-invert")
    np.testing.assert_array_equal(painted(page).mask, 255 - mask)
    page.click("[data-do=undo]")
    np.testing.assert_array_equal(painted(page).mask, mask)
    for button, change in (("#bld-grow", 8), ("#bld-shrink-mask", -8)):
        press(page, button)
        mask_rows = np.flatnonzero(painted(page).mask.any(axis=1))
        assert mask_rows[0] == rows[0] - max(change, 0)
    press(page, "#bld-feather-mask")
    soft = painted(page).mask
    assert 0 < soft[rows[0] + 3, 300] < 255
    page.click("[data-do=in]")
    page.click("[data-do=in]")
    page.click("[data-tool=move]")
    drag(page, (0.5, 0.5), (0.6, 0.6))
    np.testing.assert_array_equal(painted(page).mask, soft), "looking changes nothing"

    edited(page)
    with zipfile.ZipFile(fetched(page, "#bld-zip", tmp_path)) as archive:
        archive.extractall(tmp_path / "home")
    with Image.open(tmp_path / "home/edits/01/mask.png") as kept:
        np.testing.assert_array_equal(np.asarray(kept.convert("L")), soft)
    with Image.open(tmp_path / "home/edits/01/image.png") as kept:
        np.testing.assert_array_equal(np.asarray(kept), data.coffee())


def test_a_scribble_is_painted_into_the_picture(
    visit: Visit, photo: Path, model: GatedModel, tmp_path: Path
) -> None:
    model.let()
    page = visit()
    open_photo(page, photo)
    page.click("[data-tool=colour]")
    assert "Strength" in page.inner_text(".bld-hint")
    drag(page, (0.1, 0.8), (0.25, 0.8))
    sent = painted(page)
    np.testing.assert_array_equal(sent.mask, sent.colours[..., 3])
    page.fill("#bld-strength input[type=number]", "0.5")
    edited(page)
    with zipfile.ZipFile(fetched(page, "#bld-zip", tmp_path)) as archive:
        archive.extractall(tmp_path)
    with Image.open(tmp_path / "edits/01/image.png") as kept:
        picture = np.asarray(kept)
    assert tuple(picture[320, 100]) == (0xC8, 0x1E, 0x28)
    untouched = sent.colours[..., 3] == 0
    np.testing.assert_array_equal(picture[untouched], data.coffee()[untouched])
    assert json.loads((tmp_path / "edits/01/edit.json").read_text())["request"]["strength"] == 0.5


def test_progress_is_seen_and_cancel_frees_the_model(visit: Visit, photo: Path, model: GatedModel) -> None:
    page = visit()
    open_photo(page, photo)
    drag(page, (0.3, 0.3), (0.6, 0.6))
    page.fill("#bld-prompt textarea", "a red wall")
    before = model.begun
    page.click("#bld-edit")
    model.let(3)
    status(page, "Denoising, step 3 of 50")
    page.wait_for_selector("#bld-preview img")
    assert not page.is_enabled("#bld-edit")
    page.click("#bld-cancel")
    status(page, "Cancelled")
    model.let()
    edited(page)
    assert page.is_enabled("#bld-edit")
    assert not page.is_enabled("#bld-cancel")
    assert model.begun - before <= 3 + 1 + 50


def test_who_gives_up_waiting_is_told_so_and_may_ask_again(
    visit: Visit, photo: Path, model: GatedModel
) -> None:
    first, second = visit(), visit()
    for page in (first, second):
        open_photo(page, photo)
        drag(page, (0.4, 0.4), (0.6, 0.6))
        page.fill("#bld-prompt textarea", "a red wall")
        page.click("#bld-edit")
        status(page, "Denoising" if page is first else "Waiting")
    second.click("#bld-cancel")
    status(second, "Cancelled")
    model.let()
    status(first, "Done in")
    second.wait_for_function("!document.querySelector('#bld-edit').disabled")
    assert "Cancelled" in second.inner_text("#bld-status")
    edited(second)


def test_two_visitors_wait_for_one_another_and_never_meet(
    visit: Visit, photo: Path, model: GatedModel, tmp_path: Path
) -> None:
    other = tmp_path / "rocket.png"
    Image.fromarray(data.rocket()).save(other)
    first, second = visit(), visit()
    seen: dict[Page, list[str]] = {first: [], second: []}
    for page, picture in ((first, photo), (second, other)):
        page.on("request", lambda request, page=page: seen[page].append(request.url))
        open_photo(page, picture)
        drag(page, (0.4, 0.4), (0.6, 0.6))
        page.fill("#bld-prompt textarea", "a red wall" if page is first else "a blue wall")
        page.click("#bld-edit")
        status(page, "Denoising" if page is first else "Waiting")
    model.let(2)
    status(first, "step 2 of 50")
    status(second, "Waiting")
    model.let()
    for page, name, colour in ((first, "coffee", 0), (second, "rocket", 2)):
        status(page, "Done in")
        page.wait_for_selector("#bld-gallery img")
        path = fetched(page, "#bld-save", tmp_path)
        assert path.name == f"{name}-edit-01-candidate-1.png"
        with Image.open(path) as picture:
            middle = np.asarray(picture.convert("RGB"))[picture.height // 2, picture.width // 2]
        assert int(np.argmax(middle)) == colour
    mine, theirs = (
        {url.split("/visits/")[1][:32] for url in urls if "/visits/" in url} for urls in seen.values()
    )
    assert len(mine) == len(theirs) == 1
    assert mine != theirs


def test_bad_input_is_one_clear_line_and_nothing_runs(
    visit: Visit, photo: Path, model: GatedModel, tmp_path: Path
) -> None:
    page, before = visit(), model.begun
    page.click("#bld-edit")
    says(page, "there is no photograph yet")
    open_photo(page, photo)
    page.click("#bld-edit")
    says(page, "the prompt is empty")
    page.fill("#bld-prompt textarea", "a red wall")
    page.click("#bld-edit")
    says(page, "the mask is empty")
    drag(page, (0.3, 0.3), (0.6, 0.6))
    page.fill("#bld-prompt textarea", f"one two three four five six {EVIL}")
    page.click("#bld-edit")
    says(page, "would be cut")
    page.fill("#bld-prompt textarea", "x" * 5000)
    page.click("#bld-edit")
    says(page, "5000 characters")
    page.fill("#bld-prompt textarea", "a red wall")
    page.fill("#bld-seed :is(input, textarea)", "seven")
    page.click("#bld-edit")
    says(page, "expected a whole number")

    small, text = tmp_path / "small.png", tmp_path / "text.png"
    Image.new("L", (30, 20), 255).save(small)
    text.write_text("no picture")
    page.click("text=Mask from a file")
    page.set_input_files("[data-testid='Open a mask-upload-button']", small)
    says(page, "the mask is 30x20, the image 600x400")
    page.set_input_files("[data-testid='Open a photograph-upload-button']", text)
    says(page, "image")
    assert page.evaluate("window.hit") is None
    assert model.begun == before
    assert painted(page).mask.any(), "the painting is still there"
    whole = tmp_path / "whole.png"
    Image.fromarray(np.tile(np.array([[0], [255]], np.uint8), (200, 600))).save(whole)
    page.set_input_files("[data-testid='Open a mask-upload-button']", whole)
    status(page, "mask read from luminance")
    page.wait_for_function("document.querySelector('.bld-stage').dataset.base === '2'")
    np.testing.assert_array_equal(painted(page).mask[:, 0], np.tile([0, 255], 200))


def test_html_in_a_prompt_is_never_rendered(visit: Visit, photo: Path, model: GatedModel) -> None:
    model.let()
    page = visit()
    open_photo(page, photo)
    drag(page, (0.3, 0.3), (0.6, 0.6))
    edited(page, f"red {EVIL}")
    page.click("#bld-use")
    page.wait_for_selector("#bld-history img >> nth=1")
    assert EVIL in captions(page, "#bld-history")[1]
    assert EVIL in page.inner_text("#bld-facts")
    assert page.evaluate("window.hit") is None


def test_everything_can_be_done_with_the_keyboard(visit: Visit, photo: Path, model: GatedModel) -> None:
    model.let()
    page = visit()
    open_photo(page, photo)
    page.focus(".bld-stage")
    for key in ("ArrowRight", "Enter", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    dabs = painted(page).mask
    assert dabs.any()
    page.keyboard.press("Control+z")
    assert 0 < np.count_nonzero(painted(page).mask) < np.count_nonzero(dabs)
    page.keyboard.press("r")
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert np.count_nonzero(painted(page).mask) > np.count_nonzero(dabs) / 2
    page.focus("#bld-prompt textarea")
    page.keyboard.type("a red wall")
    page.keyboard.press("Enter")
    status(page, "Done in")
    reached = []
    page.focus(".bld-stage")
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    for name in ("bld-photo", "bld-invert", "bld-edit", "bld-use", "bld-zip", "thumbnail-item"):
        assert any(name in one for one in reached), name


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(visit: Visit, photo: Path, model: GatedModel, studio: str, theme: str) -> None:
    model.let()
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2, color_scheme=theme)
    open_photo(page, photo)
    box = page.locator(".bld-stage").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert painted(page).mask[200, 300] == 255
    edited(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for part in (".bld-stage", "#bld-edit", "#bld-use", "#bld-comparison"):
        found = page.locator(part).bounding_box()
        assert found["x"] >= 0
        assert found["x"] + found["width"] <= PHONE["width"]
    is_dark = page.evaluate("document.body.classList.contains('dark')")
    assert is_dark == (theme == "dark")
    shoot(page, f"phone-{theme}-all", full_page=True)
    page.evaluate("window.scrollTo(0, 0)")
    shoot(page, f"phone-{theme}", docs=theme == "dark")


def test_a_large_photograph_is_edited_at_its_own_size(
    visit: Visit, model: GatedModel, tmp_path: Path
) -> None:
    model.let()
    large = tmp_path / "large.png"
    rows = np.linspace(0, 255, 1500, dtype=np.uint8)
    pixels = np.repeat(np.repeat(rows[:, None], 2000, 1)[..., None], 3, 2)
    Image.fromarray(pixels).save(large, compress_level=1)
    page = visit()
    open_photo(page, large)
    assert "2000 x 1500 px, painted on at 1536 x 1152" in page.inner_text(".bld-hint")
    drag(page, (0.4, 0.4), (0.5, 0.5))
    page.fill("#bld-candidates input", "1")
    edited(page)
    with Image.open(fetched(page, "#bld-save", tmp_path)) as picture:
        after = np.asarray(picture.convert("RGB"))
    assert after.shape == pixels.shape
    changed = (after != pixels).any(-1)
    assert 0 < changed.mean() < 0.1
    assert not changed[:500].any()


def test_uploads_are_limited_and_nothing_is_left(
    visit: Visit, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    huge = tmp_path / "huge.png"
    huge.write_bytes(bytes(2 * 2**20))

    def files() -> set[Path]:
        return {path for path in tmp_path.rglob("bld-studio-*/**/*") if path.is_file()}

    with served(GatedModel(), max_upload_mb=1, grace=0.1) as url:
        page = visit(url)
        page.set_input_files("[data-testid='Open a photograph-upload-button']", huge)
        says(page, "size")
        assert not page.locator(".bld-full").count()
        open_photo(page, photo)
        assert not [path for path in files() if path.name == photo.name], "read, and removed"
        assert files(), "thumbnails"
        page.close()
        deadline = time.monotonic() + 30
        while any("visits" in path.parts for path in files()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any("visits" in path.parts for path in files())
    assert not list(tmp_path.glob("bld-studio-*"))


def test_who_is_not_let_in_sees_nothing(visit: Visit, tmp_path: Path) -> None:
    with served(GatedModel(), users=(("ada", "secret"),)) as url:
        page = visit(url, wait="input[type=password]")
        assert not page.locator(".bld-stage").count()
        answer = page.request.get(f"{url}/config")
        assert answer.status == 401
        for password, let_in in (("wrong", False), ("secret", True)):
            answer = page.request.post(f"{url}/login", form={"username": "ada", "password": password})
            assert answer.ok == let_in
        page.goto(url)
        page.wait_for_selector(".bld-stage")
        page.close()  # or it asks a server that has gone
