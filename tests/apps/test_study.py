"""`bld study` from build to verdict, with a rater in a real browser."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn

from bld.apps.study_server import create_app
from bld.evaluation import study
from bld.evaluation.run import settle
from bld.evaluation.suite import Suite, build
from bld.images import Photograph, save_png
from tests.apps.conftest import Run
from tests.apps.servers import until

CHROMIUM = shutil.which("chromium")
NAMED = "--host-resolver-rules=MAP raters.test 127.0.0.1"  # this machine, as another one sees it
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt install chromium")


@pytest.fixture
def folder(tmp_path: Path, bld: Run) -> Path:
    """A study of six cases, ours dark and the other one light."""
    grey = np.full((32, 32, 3), 128, np.uint8)
    suite: Suite = build(
        ((f"p{i}", Photograph(grey)) for i in range(6)), [("owl", "an owl")], tmp_path / "suite", name="s"
    )
    run = tmp_path / "run"
    settle(run, {"suite": str(suite.folder), "cases": 6})
    for method, shade in (("bld", 40), ("light", 200)):
        for case in suite.cases:
            (run / method / f"{case.number:03d}").mkdir(parents=True)
            save_png(run / method / f"{case.number:03d}" / "00.png", grey * 0 + np.uint8(shade))
    code, out, _ = bld("study", "build", "--run", run, "--others", "light", "--output", tmp_path / "study")
    assert code == 0
    assert "13 questions" in out
    return tmp_path / "study"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    config = uvicorn.Config(create_app(folder), port=0, log_config=None)
    server, sock = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def browser_page(**options: Any) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", NAMED])
        try:
            yield browser.new_page(**options)
        finally:
            browser.close()


@needs_browser
def test_a_rater_answers_by_mouse_and_keys(folder: Path, bld: Run) -> None:
    """The darker picture always, which is ours; the page may be left and come back to."""
    questions = study.read_key(folder).questions
    foreign: list[str] = []
    with served(folder) as local, browser_page(viewport={"width": 390, "height": 800}) as page:
        url = local.replace("127.0.0.1", "raters.test")
        page.on("request", lambda r: None if r.url.startswith((url, "data:")) else foreign.append(r.url))
        page.goto(url)
        for place, question in enumerate(questions):
            side = question.check or ("left" if question.left == "bld" else "right")
            assert page.locator("#progress").get_attribute("value") == str(place)
            if place % 2:
                page.keyboard.press({"left": "ArrowLeft", "right": "ArrowRight"}[side])
            else:
                page.locator(f".pair [data-side={side}]").click()
            page.wait_for_function(f"document.getElementById('progress').value === {place + 1}")
            if place == 5:
                page.reload()
        page.get_by_text("Thank you").wait_for()
    assert not foreign
    code, out, _ = bld("study", "analyse", folder)
    assert code == 0
    assert "1 raters, 0 of them left out" in out
    assert "| light | quality | 6 | 0 | 0 | 100 (61 to 100) | 0.0312 |" in out
    assert "| light | text | 6 | 0 | 0 |" in out


@needs_browser
def test_a_question_is_answered_once_and_none_is_skipped(folder: Path) -> None:
    """Whatever is pressed while an answer is on its way, or pressed twice, or held."""
    held: list[Any] = []

    def answered(page: Any, count: int) -> None:
        page.wait_for_function(f"document.getElementById('progress').value === {count}")

    with served(folder) as url, browser_page() as page:
        page.goto(url)
        order = page.evaluate("questions.map(question => question.number)")
        page.keyboard.press("ArrowDown")
        answered(page, 1)
        page.route("**/answers", lambda route: held.append(route))
        with page.expect_request("**/answers"):
            page.keyboard.press("ArrowLeft")
        page.locator(".pair [data-side=right]").click()
        page.get_by_role("button", name="Back").click()
        with page.expect_response("**/answers"):
            held.pop(0).continue_()
        answered(page, 2)
        assert not held
        page.unroute("**/answers")
        page.locator(".pair [data-side=left]").dblclick()
        answered(page, 3)
        page.keyboard.down("ArrowRight")
        answered(page, 4)
        page.keyboard.down("ArrowRight")
        page.evaluate("delete answers[questions[1].number]; show()")  # as if it had been skipped
        for count in range(4, 13):
            page.keyboard.press("ArrowDown")
            answered(page, count)
        page.keyboard.press("ArrowUp")
        assert page.get_by_text("Thank you").count() == 0
        page.keyboard.press("ArrowDown")
        page.get_by_text("Thank you").wait_for()
    given = study.Answers(folder / study.ANSWERS).all()
    assert {order.index(number): side for _, number, side in given} == {
        place: {2: "left", 3: "right"}.get(place, "equal") for place in range(13)
    }


@needs_browser
def test_without_a_server_the_answers_are_a_file(folder: Path, tmp_path: Path, bld: Run) -> None:
    """Another study, which the browser takes for the same place, begins anew and refuses them."""
    another = tmp_path / "another"
    bld("study", "build", "--run", tmp_path / "run", "--others", "light", "--output", another, "--seed", 1)
    with browser_page() as page:
        page.goto((folder / study.PAGE).as_uri())
        for _ in range(13):
            page.get_by_role("button", name="They are equal").click()
        with page.expect_download() as download:
            page.get_by_text("Save the answers").click()
        download.value.save_as(tmp_path / "answers.json")
        page.goto((another / study.PAGE).as_uri())
        assert page.locator("#progress").get_attribute("value") == "0"
    assert len(json.loads((tmp_path / "answers.json").read_text())) == 13
    code, out, _ = bld("study", "analyse", folder, "--answers", tmp_path / "answers.json")
    assert code == 0
    assert "1 of them left out for a failed check" in out
    code, _, err = bld("study", "analyse", another, "--answers", tmp_path / "answers.json")
    assert code == 2
    assert f"answers to the study {study.read_key(folder).study}, but this one is" in err


@needs_browser
def test_the_page_of_another_study_is_told_so(folder: Path, tmp_path: Path, bld: Run) -> None:
    """It was open when another one took its place on the server."""
    another = tmp_path / "another"
    bld("study", "build", "--run", tmp_path / "run", "--others", "light", "--output", another, "--seed", 1)
    with served(folder) as url, browser_page() as page:
        page.goto(url)
        shutil.copy(another / study.KEY, folder / study.KEY)
        with served(folder) as other_url:
            page.route(f"{url}/answers", lambda r: r.continue_(url=f"{other_url}/answers"))
            page.get_by_role("button", name="They are equal").click()
            page.get_by_text("That is the page of another study").wait_for()
    assert study.Answers(folder / study.ANSWERS).all() == []


def test_of_a_rater_the_last_answer_counts_whatever_it_came_in(
    folder: Path, tmp_path: Path, bld: Run
) -> None:
    """One for ours in three files and in the database too; two for the other one."""
    key = study.read_key(folder)
    number, question = next((n, q) for n, q in enumerate(key.questions) if not q.check)
    ours, other = ("left", "right") if question.left == "bld" else ("right", "left")
    study.Answers(folder / study.ANSWERS).add("a", number, other)  # type: ignore[arg-type]
    files = []
    for rater, side in (("a", ours), ("b", other), ("c", other)):
        files.append(tmp_path / f"{rater}.json")
        files[-1].write_text(json.dumps([{"rater": rater, "question": number, "side": side}]))
    for given, line in (([0, 0, 0, 1, 2], "| 0 | 1 | 0 |"), ([0, 0, 1], "| 0 | 0 | 1 |")):
        answers = [part for i in given for part in ("--answers", files[i])]
        code, out, _ = bld("study", "analyse", folder, *answers)
        assert code == 0
        assert f"| light | {question.kind} {line}" in out


def test_answers_that_are_none_are_refused(folder: Path, tmp_path: Path, bld: Run) -> None:
    with served(folder) as url:
        for body, status in [
            ({"rater": "r", "question": 0, "side": "left"}, 204),
            ({"study": "another", "rater": "r", "question": 0, "side": "right"}, 409),
            ({"rater": "r", "question": 99, "side": "left"}, 404),
            ({"rater": "r", "question": 0, "side": "up"}, 422),
            ({"rater": "<b>", "question": 0, "side": "left"}, 422),
            ({"rater": "r" * 100_000, "question": 0, "side": "left"}, 413),
        ]:
            answer = httpx2.post(f"{url}/answers", json=body)
            assert answer.status_code == status
            assert "<b>" not in answer.text, "what came is not sent back"
        assert httpx2.get(f"{url}/{study.KEY}").status_code == 404, "the key stays at home"
    assert study.Answers(folder / study.ANSWERS).all() == [("r", 0, "left")]
    for answer in ('"question": 0, "side": "up"', '"question": 1e999, "side": "left"'):
        (tmp_path / "bad.json").write_text(f'[{{"rater": "r", {answer}}}]')
        assert bld("study", "analyse", folder, "--answers", tmp_path / "bad.json")[0] == 2
    assert bld("study", "analyse", tmp_path)[0] == 2
    assert bld("study", "build", "--run", tmp_path, "--others", "light")[0] == 2
