"""The HTTP API, through the official client wherever it would send such a thing."""

import base64
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from bld import Editor
from bld.apps.server.app import create_app
from bld.apps.server.fields import FORM, OWN
from bld.apps.server.results import Results
from bld.apps.server.settings import Settings
from bld.errors import InvalidInput
from bld.options import FIELDS, PRESETS
from bld.png import encode_png
from bld.task import HIDDEN
from tests.apps.servers import (
    DEADLINE,
    HOLE,
    HOLED,
    PHOTO,
    BrightestRed,
    Running,
    encoded,
    pixels,
    running,
    until,
)
from tests.disk import full_disk
from tests.tiny import GaussianModel

IMAGE, MASK = encoded(PHOTO), encoded(HOLED)
WIDE = encoded(np.zeros((4, 16_384, 4), np.uint8))
REPOSITORY = Path(__file__).parents[2]
RED = "a red wall"
HEAD = b"POST /v1/images/edits HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


def edit(server: Running, client: dict[str, Any] | None = None, /, **fields: Any) -> Any:
    asked = {"image": IMAGE, "mask": MASK, "prompt": RED, "extra_body": {"seed": 3, "steps": 4}, **fields}
    return server.openai(**client or {}).images.edit(**asked)


def decoded(image: Any) -> Any:
    return pixels(base64.b64decode(image.b64_json))


def refused(server: Running, **fields: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        edit(server, **fields)
    return caught.value


# --- what comes back ---


def test_the_best_pictures_come_back_and_nothing_else_changed(server: Running) -> None:
    answer = edit(server, n=3)
    expected = Editor(GaussianModel(), BrightestRed()).edit(PHOTO, HOLE, RED, candidates=4, seed=3, steps=4)
    assert [image.seed for image in answer.data] == [c.seed for c in expected.candidates[:3]]
    assert [image.score for image in answer.data] == sorted((i.score for i in answer.data), reverse=True)
    for image, candidate in zip(answer.data, expected.candidates, strict=False):
        np.testing.assert_array_equal(decoded(image), candidate.photograph.pixels)
        np.testing.assert_array_equal(decoded(image)[~HOLE], PHOTO[~HOLE])
        assert image.background_max_error == 0
    assert (answer.size, answer.output_format, answer.background) == ("120x90", "png", "opaque")


def test_without_a_mask_the_holes_of_the_image_are_filled(server: Running) -> None:
    """As a list of one, too, which the client sends by another name; a hole comes back opaque."""
    for image in (MASK, [MASK]):
        answer = edit(server, image=image, mask=openai.omit)
        assert decoded(answer.data[0]).shape == PHOTO.shape
        np.testing.assert_array_equal(decoded(answer.data[0])[~HOLE], PHOTO[~HOLE])
        assert (decoded(answer.data[0])[HOLE] != PHOTO[HOLE]).any()
        assert HIDDEN not in answer.notes


def test_a_photograph_keeps_its_own_alpha(server: Running) -> None:
    veil = np.full(HOLE.shape, 200, np.uint8)
    veiled = encoded(np.dstack([PHOTO, veil]))
    answer = edit(server, image=veiled)
    assert answer.background == "transparent"
    np.testing.assert_array_equal(decoded(answer.data[0])[..., 3], veil)
    assert decoded(edit(server, image=veiled, background="opaque").data[0]).shape == PHOTO.shape
    assert "jpeg holds no transparency" in refused(server, image=veiled, output_format="jpeg").message


def test_our_own_fields_are_options_of_the_edit(server: Running) -> None:
    """White = edit, if that is said; a preset by quality; and what is asked for on top of it."""
    white = encoded(np.where(HOLE, 255, 0).astype(np.uint8))
    body = {"seed": 3, "steps": 4, "mask_mode": "luminance", "candidates": 4}
    same = edit(server, mask=white, extra_body=body).data[0]
    np.testing.assert_array_equal(decoded(same), decoded(edit(server).data[0]))
    inverted = edit(server, extra_body={"seed": 3, "steps": 4, "invert_mask": "true"}).data[0]
    np.testing.assert_array_equal(decoded(inverted)[HOLE], PHOTO[HOLE])
    before = server.service.measures.registry.get_sample_value("bld_steps_total")
    assert before is not None
    edit(server, quality="low", extra_body={"seed": 3})
    after = server.service.measures.registry.get_sample_value("bld_steps_total")
    assert after - before == PRESETS["fast"]["steps"], "all candidates in one batch"


@pytest.mark.parametrize(("kind", "magic"), [("webp", b"RIFF"), ("jpeg", b"\xff\xd8"), ("png", b"\x89PNG")])
def test_formats_and_urls(server: Running, kind: Any, magic: bytes) -> None:
    answer = edit(server, response_format="url", output_format=kind, output_compression=80)
    found = httpx2.get(answer.data[0].url)
    assert found.headers["content-type"] == f"image/{kind}"
    assert found.content.startswith(magic)
    assert answer.data[0].b64_json is None
    assert answer.data[0].background_max_error == (0 if kind == "png" else None), "other files lose some"
    assert len(answer.data[0].url.rsplit("/", 1)[1]) > 40, "nobody guesses that"


def test_a_size_of_the_same_proportions_scales_and_says_so(server: Running) -> None:
    answer = edit(server, size="240x180")
    assert decoded(answer.data[0]).shape == (180, 240, 3)
    assert "result scaled to 240x180" in answer.notes
    assert answer.data[0].background_max_error is None
    assert "use auto or 1024x768" in refused(server, size="1024x1024").message


def test_that_sixteen_bits_became_eight_is_said(server: Running) -> None:
    deep = encode_png(PHOTO.astype(np.uint16) * 257)
    said = [
        "16 bits written as 8" in edit(server, image=deep, **how).notes
        for how in ({}, {"output_format": "webp"}, {"size": "240x180"})
    ]
    assert said == [False, True, True]
    assert "16 bits written as 8" not in edit(server, output_format="webp").notes


def test_previews_come_while_it_runs_and_the_best_picture_last(server: Running) -> None:
    events = list(edit(server, n=2, stream=True, partial_images=3))
    assert [event.type for event in events] == ["image_edit.partial_image"] * 3 + ["image_edit.completed"] * 2
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    for event in events:
        np.testing.assert_array_equal(decoded(event)[~HOLE], PHOTO[~HOLE])
        assert (event.size, event.output_format) == ("120x90", "png")
    np.testing.assert_array_equal(decoded(events[3]), decoded(edit(server, n=2).data[0]))


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_in_a_preview_too_the_holes_of_the_image_are_filled(server: Running, kind: Any) -> None:
    fields = {"image": MASK, "mask": openai.omit, "output_format": kind, "partial_images": 2, "stream": True}
    events = list(edit(server, **fields))
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert [decoded(event).shape for event in events] == [PHOTO.shape] * 3


def test_models_are_listed_and_found(server: Running) -> None:
    assert [model.id for model in server.openai().models.list()] == ["gaussian"]
    assert server.openai().models.retrieve("gaussian").object == "model"
    with pytest.raises(openai.NotFoundError):
        server.openai().models.retrieve("gpt-image-1")


def test_an_alias_is_another_name() -> None:
    with running(aliases={"gpt-image-1": "gaussian"}) as server:
        assert edit(server, model="gpt-image-1").data


# --- what is refused ---


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": ""}, "prompt", "is missing"),
        ({"prompt": "red " * 100}, "prompt", "longer than gaussian reads"),
        ({"prompt": "x" * 1_000_000}, "prompt", "expected 32000 at most"),
        ({"n": 10_000}, "n", "expected 1 to 10"),
        ({"size": "huge"}, "size", "expected auto or WIDTHxHEIGHT"),
        ({"size": "auto\n"}, "size", "expected auto or WIDTHxHEIGHT"),
        ({"size": "99999x99999"}, "size", "is 99999x99999, 9999800001 pixels; the server takes up to"),
        ({"output_format": "svg"}, "output_format", "expected one of png, jpeg, webp"),
        ({"image": WIDE, "mask": WIDE, "output_format": "webp"}, "output_format", "holds sides of 16383 px"),
        ({"background": "transparent"}, "background", "the image is opaque"),
        ({"partial_images": 2}, "partial_images", "stream=true"),
        ({"stream": True, "response_format": "url"}, "response_format", "use b64_json"),
        ({"image": b"not a picture"}, "image", "not a picture that can be read"),
        ({"image": b""}, "image", "0 bytes"),
        ({"image": [IMAGE, IMAGE]}, "image[]", "one photograph is edited at a time"),
        ({"image": IMAGE[:2000]}, "image", "damaged or cut short"),
        ({"mask": IMAGE}, "mask", "no alpha channel"),
        ({"mask": encoded(HOLED[:50])}, "mask", "the mask is 120x50, the image 120x90"),
        ({"mask": encoded(np.dstack([PHOTO, np.full(HOLE.shape, 9, np.uint8)]))}, "mask", "empty"),
        ({"mask": openai.omit}, "mask", "is missing, and the image has no alpha channel to be one"),
        ({"image": MASK, "mask": openai.omit, "extra_body": {"mask_mode": "auto"}}, "mask", "is missing"),
        ({"mask": openai.omit, "extra_body": {"mask_mode": "luminance"}}, "mask", "is missing"),
        ({"extra_body": {"steps": "many"}}, "steps", "expected a whole number"),
        ({"extra_body": {"steps": "0"}}, "steps", "expected 1 to 1000"),
        ({"extra_body": {"strength": "nan"}}, "strength", "expected a number"),
        ({"extra_body": {"shrink": "maybe"}}, "shrink", "expected true or false"),
        ({"extra_body": {"reconstruct": "magic"}}, "reconstruct", "expected one of none, stitch"),
        (
            {"extra_body": {"guidance_start": "0.9", "guidance_end": "0.1"}},
            "guidance_start",
            "is after guidance_end",
        ),
        ({"n": 3, "extra_body": {"candidates": "2"}}, "candidates", "less than n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named_and_nothing_runs(server: Running, fields: Any, param: str, says: str) -> None:
    calls = server.model.calls
    error = refused(server, **fields)
    assert isinstance(error, openai.BadRequestError)
    assert (error.type, error.param) == ("invalid_request_error", param)
    assert says in error.message
    assert "--" not in error.message, "no flags of a command line"
    assert len(error.message) < 500
    assert error.request_id
    assert server.model.calls == calls


def test_unknown_fields_are_ignored_with_a_note(server: Running) -> None:
    """Nothing of them is rendered: the answer is JSON, and file names are never used."""
    body = {"seed": "1", "steps": "2", "<script>alert(1)</script>": "1"}
    answer = edit(
        server, image=("../../etc/passwd\x00.png", IMAGE), prompt="<b>red</b>", extra_body=body,
        input_fidelity="high",
    )  # fmt: skip
    assert [n for n in answer.notes if "ignored" in n] == [
        "unknown field, ignored: <script>alert(1)</script>",
        "unknown field, ignored: input_fidelity",
    ]


def test_requests_that_no_client_sends(server: Running) -> None:
    with server.http() as http:
        path, prompt = "/v1/images/edits", {"prompt": RED}
        multipart = {"content-type": "multipart/form-data; boundary=x"}
        for answer, status, code in [
            (http.post(path, json=prompt), 415, "unsupported_content_type"),
            (
                http.post(
                    path, content=b"--x--", headers={"content-type": "Multipart/Form-Data; boundary=x"}
                ),
                400,
                "missing_required_parameter",
            ),
            (http.post(path, files={"mask": MASK}, data=prompt), 400, "missing_required_parameter"),
            (http.post(path, data={**prompt, "image": "text"}, files={"x": b"x"}), 400, "invalid_value"),
            (
                http.post(path, content=b"--x\r\nnonsense", headers=multipart),
                400,
                "missing_required_parameter",
            ),
            (http.post(path, data=prompt, files=[("image", IMAGE)] * 2), 400, "invalid_value"),
            (http.get(path), 405, "method_not_allowed"),
            (http.get("/v1/nothing"), 404, "not_found"),
            (http.get("/v1/results/..%2f..%2fetc%2fpasswd"), 404, "not_found"),
        ]:
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, code), error
            assert set(error) == {"message", "type", "param", "code"}


def test_keys() -> None:
    with running(api_keys=("first", "second")) as server:
        assert edit(server, {"api_key": "second"}).data
        for wrong in ("", "third", "secon", "second2", "é"):
            with server.http() as http:
                answer = http.get("/v1/models", headers={"authorization": f"Bearer {wrong}".strip().encode()})
            assert answer.status_code == 401
        with pytest.raises(openai.AuthenticationError, match="no such API key"):
            edit(server, {"api_key": "third"})
        url = edit(server, {"api_key": "first"}, response_format="url").data[0].url
        assert httpx2.get(url).status_code == 200, "its name is the key"
        with server.http() as http:
            assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize(("keys", "senders"), [((), 1), (("first", "second"), 2)])
def test_turns_go_by_keys_that_are_checked_and_else_by_address(
    keys: tuple[str, ...], senders: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(api_keys=keys) as server:
        submit, seen = server.service.jobs.submit, []
        monkeypatch.setattr(server.service.jobs, "submit", lambda job: (seen.append(job), submit(job)))
        for key in ("first", "second"):
            edit(server, {"api_key": key}, user="x")
    assert len({job.client for job in seen}) == senders
    assert {job.user for job in seen} == {"x"}


@pytest.mark.parametrize("key", ["", " ", " first"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    """An empty one would be that of every request without a header."""
    with pytest.raises(InvalidInput, match="--api-key: a key is empty or has blanks around it"):
        Settings(api_keys=("first", key))


@pytest.mark.parametrize("origin", ["https://example.org/", "example.org", "HTTPS://example.org", ""])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(InvalidInput, match=r"--cors-origin .*: expected an origin"):
        Settings(cors_origins=("*", "null", "http://localhost:3000", origin))


def test_no_other_page_may_call_unless_it_is_named(server: Running) -> None:
    origin = {"origin": "https://example.org"}
    with server.http() as http:
        assert "access-control-allow-origin" not in http.get("/v1/models", headers=origin).headers
    with running(cors_origins=("https://example.org",)) as named, named.http() as http:
        allowed = http.get("/v1/models", headers=origin).headers["access-control-allow-origin"]
        assert allowed == "https://example.org"


def test_a_page_that_is_named_may_send_a_key_and_what_the_official_client_sends() -> None:
    """The browser asks first, without the key; and it shows a page no answer that does not name it."""
    origin = {"origin": "https://example.org"}
    asks = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang,x-stainless-os",
    }
    with running(cors_origins=tuple(origin.values()), api_keys=("key",)) as server, server.http() as http:
        allowed = http.options("/v1/images/edits", headers={**origin, **asks})
        assert allowed.status_code == 200, allowed.text
        refused = http.get("/v1/models", headers=origin)
        foreign = http.options("/v1/images/edits", headers={"origin": "https://example.com", **asks})
    assert refused.status_code == 401
    for answer in (allowed, refused):
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
    assert "x-should-retry" in refused.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in foreign.headers


def test_results_expire() -> None:
    with running(url_lifetime=0.0) as server:
        assert httpx2.get(edit(server, response_format="url").data[0].url).status_code == 404


def test_results_are_kept_up_to_a_size_and_the_oldest_go_first() -> None:
    results = Results(lifetime=3600, most=100)
    try:
        names = [results.keep(bytes(40), "png") for _ in range(4)]
        found = [results.find(name) for name in names]
        assert [bool(one) for one in found] == [False, False, True, True]
        assert found[3] is not None
        assert len(list(found[3][0].parent.iterdir())) == 2, "those that went have left the disk"
    finally:
        results.close()


def test_a_result_that_finds_no_room_on_the_disk_leaves_none_of_it() -> None:
    results = Results(lifetime=3600)
    with full_disk(16_000):
        kept = results.find(results.keep(bytes(8_000), "png"))
        with pytest.raises(OSError, match="too large"):
            results.keep(bytes(32_000), "png")
    assert kept is not None
    assert list(kept[0].parent.iterdir()) == [kept[0]]
    results.close()


# --- limits ---


def test_a_body_over_the_limit_is_read_no_further() -> None:
    """Announced or not: what is not read is still in the sender's hands when the answer comes."""
    with running(max_body=200_000) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            edit(server, image=IMAGE + bytes(300_000))
        assert caught.value.status_code == 413
        with dialled(server) as line:
            line.sendall(HEAD + b"content-length: 10000000000\r\n\r\n")
            assert line.recv(1000).startswith(b"HTTP/1.1 413 ")
        with dialled(server) as line:
            disposition = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
            line.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
            for part in (disposition, *[bytes(100_000)] * 3):
                line.sendall(b"%x\r\n%s\r\n" % (len(part), part))
            assert line.recv(1000).startswith(b"HTTP/1.1 413 ")


def dialled(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)))
    line.settimeout(20)
    return line


def test_a_slow_upload_is_hung_up_on() -> None:
    with running(upload_timeout=0.2) as server, dialled(server) as line:
        line.sendall(HEAD + b"content-length: 1000\r\n\r\n--x\r\n")
        assert line.recv(1000).startswith(b"HTTP/1.1 408 ")
        with server.http() as http:
            assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_client_that_does_not_read_its_answer_holds_up_no_shutdown(stream: str) -> None:
    with running(answer_timeout=1.0) as server, dialled(server) as line:
        body = {"prompt": RED, "steps": "1", "n": "2", "stream": stream}
        body["size"] = "2400x1800"  # 16 MB in all, more than lies between here and there
        files = {"image": IMAGE, "mask": MASK}
        asked = httpx2.Request("POST", server.url, data=body, files=files, headers={"host": "x"})
        kind = f"content-type: {asked.headers['content-type']}\r\n".encode()
        content = asked.read()
        line.sendall(HEAD.replace(b"content-type: multipart/form-data; boundary=x\r\n", kind))
        line.sendall(b"content-length: %d\r\n\r\n" % len(content) + content)
        assert line.recv(15) == b"HTTP/1.1 200 OK"
        server.server.handle_exit(signal.SIGTERM, None)
        server.thread.join(DEADLINE)
        assert not server.thread.is_alive()


def test_a_client_that_hangs_up_during_the_upload_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    with running() as server:
        with dialled(server) as line:
            line.sendall(HEAD + b"content-length: 1000\r\n\r\n--x\r\n")
            until(lambda: server.server.server_state.tasks)  # the request has begun
        counted = server.service.measures.registry.get_sample_value
        labels = {"route": "/v1/images/edits", "status": "499"}
        until(lambda: counted("bld_requests_total", labels))
    assert not [record for record in caplog.records if record.exc_info]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_full_queue_refuses_and_says_when_to_ask_again() -> None:
    with running(open_gate=False, queue=1) as server:
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(edit(server))) for _ in range(2)]
        threads[0].start()
        server.wait_for_step()
        threads[1].start()
        until(lambda: server.service.jobs.waiting == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            edit(server)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "queue_full"
        # The client's own retries are enough, once there is room.
        asked_again: list[Any] = []
        retry = threading.Thread(target=lambda: asked_again.append(edit(server, {"max_retries": 5})))
        retry.start()
        server.model.let()
        for thread in (*threads, retry):
            thread.join(60)
        assert len(answers) == 2
        assert asked_again[0].data


def test_an_edit_that_takes_too_long_is_given_up() -> None:
    with running(open_gate=False, timeout=0.3) as server:
        with pytest.raises(openai.InternalServerError) as caught:
            edit(server, {"max_retries": 2})
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        assert caught.value.response.headers["x-should-retry"] == "false"
        until(lambda: server.service.jobs.running == 1)
        server.model.let()
        until(server.idle)
        assert server.model.begun == 1, "one step had begun, and was the last"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_the_model_within_a_step(stream: bool) -> None:
    with running(open_gate=False) as server:
        with pytest.raises(openai.APITimeoutError):
            edit(server, {"timeout": 0.5}, stream=stream, extra_body={"seed": 0, "steps": 50})
        server.wait_for_step()
        waiting = threading.Thread(target=lambda: edit(server, extra_body={"seed": 0, "steps": 1}))
        until(lambda: server.service.jobs.running == 1)
        waiting.start()
        until(lambda: server.service.jobs.waiting == 1)
        server.model.let()
        waiting.join(20)
        until(server.idle)
        assert server.model.begun == 2, "one step of each, none of the 49 others"


def test_a_request_that_waits_leaves_the_queue_with_its_client() -> None:
    with running(open_gate=False) as server:
        first = threading.Thread(target=lambda: edit(server))
        first.start()
        server.wait_for_step()
        with pytest.raises(openai.APITimeoutError):
            edit(server, {"timeout": 0.3})
        until(lambda: server.service.jobs.waiting == 0)
        server.model.let()
        first.join(20)


def test_a_defect_is_answered_without_its_details(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(server.model, "decode", broken)
    with pytest.raises(openai.InternalServerError) as caught:
        edit(server)
    assert caught.value.code == "internal_error"
    assert "secret" not in caught.value.response.text
    logged = [record for record in caplog.records if record.exc_info]
    assert "secret detail" in str(logged[0].exc_info)
    assert logged[0].request_id == caught.value.request_id  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert edit(server).data, "and the server goes on"


def test_of_an_edit_that_fails_the_log_says_why(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decode = server.model.decode
    monkeypatch.setattr(server.model, "decode", lambda z: decode(z) * float("nan"))
    with pytest.raises(openai.InternalServerError) as caught:
        edit(server)
    assert caught.value.code == "edit_failed"
    refused(server, prompt="secret " * 100)
    (logged,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "values that are not numbers" in logged.getMessage()
    assert logged.request_id == caught.value.request_id  # type: ignore[attr-defined]
    assert "secret" not in caplog.text


# --- health, measures, description ---


def test_health_and_measures(server: Running) -> None:
    edit(server)
    with server.http() as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").json() == {"status": "ready"}
        text = http.get("/metrics").text
        given = http.get("/healthz", headers={"x-request-id": "mine-1"})
        assert given.headers["x-request-id"] == "mine-1"
        assert (
            http.get("/healthz", headers={"x-request-id": "no\tgood"}).headers["x-request-id"] != "no\tgood"
        )
    for line in (
        'bld_stage_seconds_count{stage="blend"}', 'bld_requests_total{route="/v1/images/edits",status="200"}',
        "bld_queue_waiting 0.0", "bld_edits_running 0.0", "process_resident_memory_bytes",
    ):  # fmt: skip
        assert line in text


def test_shutting_down_refuses_what_is_new() -> None:
    with running(open_gate=False) as server:
        answers: list[Any] = []
        accepted = threading.Thread(target=lambda: answers.append(edit(server, response_format="url")))
        accepted.start()
        server.wait_for_step()
        server.server.handle_exit(15, None)
        until(lambda: server.service.jobs.closed)
        with server.http() as http:
            assert http.get("/readyz").status_code == 503
            assert http.get("/healthz").status_code == 200
        with pytest.raises(openai.InternalServerError) as caught:
            edit(server)
        assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
        server.model.let()
        accepted.join(20)
        assert httpx2.get(answers[0].data[0].url).status_code == 200, "what was accepted is still fetched"
        until(lambda: server.server.should_exit)


def test_the_last_link_too_is_fetched_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edit is done, its answer is not; and whoever asked for it is far away."""
    with running(open_gate=False) as server:
        keep, answers = server.service.results.keep, []

        def slowly(*given: Any) -> str:
            time.sleep(0.3)
            return keep(*given)

        monkeypatch.setattr(server.service.results, "keep", slowly)
        accepted = threading.Thread(target=lambda: answers.append(edit(server, response_format="url")))
        accepted.start()
        server.wait_for_step()
        server.server.handle_exit(15, None)
        server.model.let()
        accepted.join(20)
        time.sleep(0.5)
        assert httpx2.get(answers[0].data[0].url).status_code == 200
        until(lambda: server.server.should_exit)


def test_the_description_is_the_committed_one() -> None:
    """To renew it: start `bld serve`, and save its /openapi.json as docs/openapi.json."""
    committed = json.loads((REPOSITORY / "docs/openapi.json").read_text(encoding="utf-8"))
    assert create_app([{}], Settings()).openapi() == committed


def test_the_form_declares_no_default_of_its_own() -> None:
    for name in OWN:
        option, schema = FIELDS[name], FORM[name]
        bounds = (schema.get("minimum"), schema.get("maximum"))
        assert bounds == (option.metadata["low"], option.metadata["high"])
        if name != "mask_mode":  # the API's own convention, said in its description
            assert schema.get("default") == option.default
            assert schema["description"] == option.metadata["help"]
