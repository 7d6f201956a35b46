"""Manifests: how they are read, and that every bad row is named before anything runs."""

import csv
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from bld.apps.batch.files import Files
from bld.apps.batch.manifest import Row, check_files, read, seed_of
from bld.errors import InvalidInput
from tests.apps.batches import SIZE, manifest, pictures, row

ROWS = [
    {"id": "one", "image": "a.png", "mask": "b.png", "prompt": "a cat, grey", "steps": 7, "shrink": False},
    {
        "id": "two",
        "image": "/abs/a.png",
        "mask": "s3://bucket/b.png",
        "prompt": "ein Hündchen",
        "strength": 0.5,
    },
]


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for one in rows for name in one))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for one in rows for name in one))
    pyarrow.parquet.write_table(
        pyarrow.table({name: [one.get(name) for one in rows] for name in names}), path
    )


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_kind_of_table_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    {"jsonl": lambda p, r: manifest(p.parent, r), "csv": as_csv, "parquet": as_parquet}[kind](path, ROWS)
    (one, two), refused = read(path)
    assert refused == []
    first = {"jsonl": 1, "csv": 2, "parquet": 1}[kind]
    assert one == Row(
        number=0, line=first, id="one", image=str(tmp_path / "a.png"), mask=str(tmp_path / "b.png"),
        prompt="a cat, grey", changes=(("shrink", False), ("steps", 7)),
    )  # fmt: skip
    assert (two.image, two.mask, two.line) == ("/abs/a.png", "s3://bucket/b.png", first + 1)
    assert two.prompt == "ein Hündchen"
    assert type(two.prompt) is str
    assert two.changes == (("strength", 0.5),)
    options = two.options({"steps": 9, "strength": 1.0})
    assert (options.steps, options.strength, options.seed) == (9, 0.5, seed_of("two"))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"image": None}, "image missing"),
    "empty prompt": ({"prompt": "  "}, "the prompt is empty"),
    "half a character": ({"prompt": "a \ud800 b"}, "the prompt holds what is no text ('a \\ud800 b')"),
    "half a character in an option": ({"negative_prompt": "\udc00"}, "the negative_prompt holds"),
    "a prompt of another type": ({"prompt": ["a"]}, "prompt ['a']: expected a text"),
    "a picture in the table": ({"image": {"bytes": "x" * 10**6}}, "image {'bytes': 'xxxx"),
    "unknown column": ({"stepz": 4}, "'stepz' is no option of an edit"),
    "out of range": ({"steps": 0}, "--steps 0: expected from 1 to 1000"),
    "another type": ({"steps": "7"}, "--steps '7': expected a whole number"),
    "choice": ({"reconstruct": "glue"}, "choose one of none, stitch"),
    "id with a slash": ({"id": "../x"}, "it names a folder"),
    "hidden id": ({"id": ".x"}, "it names a folder"),
    "repeated id": ({"id": "R00"}, "line 1 has it already"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path: Path, case: str) -> None:
    values, says = BAD[case]
    rows, (refused,) = read(manifest(tmp_path, [row(0), row(1, **values), row(2)]))
    assert [one.id for one in rows] == ["r00", "r02"]
    assert (refused.number, refused.line) == (1, 2)
    assert says in refused.reason
    assert "\n" not in refused.reason
    assert len(refused.reason) < 300


def test_broken_lines_do_not_hide_the_others(tmp_path: Path) -> None:
    path = manifest(tmp_path, [row(0), row(1)])
    path.write_text("[1]\n{\n\n" + "[" * 200_000 + "\n" + path.read_text())
    rows, refused = read(path)
    assert [(one.id, one.line, one.number) for one in rows] == [("r00", 5, 3), ("r01", 6, 4)]
    assert [one.line for one in refused] == [1, 2, 4]
    assert all(one.reason.startswith("not a line of JSON (") for one in refused)
    path = tmp_path / "rows.csv"
    path.write_text("id,image,mask,prompt,steps\na,i,m,p\nb,i,m,p,many\nc,i,m,p,3,4\nd,i,m,p,3\n")
    rows, refused = read(path)
    assert [(one.id, one.changes) for one in rows] == [("a", ()), ("d", (("steps", 3),))]
    assert [one.reason for one in refused] == [
        "steps 'many': expected a whole number", "it has more cells than the first line has names",
    ]  # fmt: skip


def test_own_columns_gaps_and_missing_ids(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    as_parquet(path, [row(0, id=None, _sku="x", seed=3.0), row(1, id=None, seed=float("nan"))])
    (one, two), refused = read(path)
    as_parquet(path, [row(0, id=17.0), row(1, id=float("nan"))])
    assert [one.id for one in read(path)[0]] == ["17", "000001"], "as whole numbers in a table with a gap are"
    assert refused == []
    assert (one.id, one.changes) == ("000000", (("seed", 3),))
    assert (two.id, two.changes) == ("000001", ())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.jsonl", b"", "there are no rows in it"),
        ("rows.txt", b"x", "ends in .jsonl, .csv, .parquet"),
        ("rows.parquet", b"no", "not a Parquet file"),
        ("rows.jsonl", b"\xff\xfe{", "not UTF-8 text"),
        ("rows.csv", b'id,image\n"a', "is no CSV"),
        ("rows.csv", b"image,mask,prompt,seed,seed\ni,m,p,1,2\n", "two columns are named 'seed'"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=says):
        read(tmp_path / name)


# --- the files behind it ---


def refusals(folder: Path, rows: list[dict[str, Any]], files: Files | None = None) -> dict[str, str]:
    read_rows, refused = read(manifest(folder, rows))
    assert refused == []
    return {one.id: one.reason for one in check_files(read_rows, {}, files or Files())}


def test_files_are_checked_by_their_heads(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "empty.png").touch()
    Image.new("L", (40, 30)).save(tmp_path / "small.png")
    turned = Image.new("RGB", (SIZE[0], SIZE[1]))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    found = refusals(
        tmp_path,
        [
            row(0), row(1, image="none.png"), row(2, mask="text.png"), row(3, image="empty.png"),
            row(4, mask="small.png"), row(5, mask="small.png", resize_mask=True), row(6, image="turned.jpg"),
            row(7, max_pixels=100), row(8, image="."), row(9, image="none.png"),
        ],
    )  # fmt: skip
    assert set(found) == {"r01", "r02", "r03", "r04", "r07", "r08", "r09"}
    assert "none.png does not exist" in found["r01"]
    assert "text.png is not a picture that can be read" in found["r02"]
    assert "is empty (0 bytes)" in found["r03"]
    assert "the mask is 40x30, the image 96x80" in found["r04"]
    assert "over the limit of 100" in found["r07"]
    assert "is a folder" in found["r08"]


def test_each_file_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path)
    seen = []
    opened = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **how: seen.append(path) or opened(path, **how))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    assert refusals(tmp_path, [row(i) for i in range(30)]) == {}
    assert len(seen) == len(set(seen)) == 6


# --- URLs ---


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A server of tmp_path, which sends whoever asks for /away to a host of another name."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def do_GET(self) -> None:
            if self.path != "/away":
                return super().do_GET()
            self.send_response(302)
            self.send_header("location", f"http://localhost:{self.server.server_port}/photo0.png")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_web_pictures_are_read_from_allowed_hosts_alone(tmp_path: Path, web: str) -> None:
    pictures(tmp_path)
    files = Files(("127.0.0.1",))
    assert files.read(f"{web}/photo0.png", "image") == (tmp_path / "photo0.png").read_bytes()
    found = refusals(
        tmp_path, [row(0, image=f"{web}/photo0.png"), row(1, image=f"{web}/none.png")], files
    )  # fmt: skip
    assert set(found) == {"r01"}
    with pytest.raises(InvalidInput, match=r"--allow-host 127\.0\.0\.1"):
        Files().read(f"{web}/photo0.png", "image")


def test_a_redirect_leads_nowhere(tmp_path: Path, web: str) -> None:
    pictures(tmp_path)
    try:
        content = Files(("127.0.0.1",)).read(f"{web}/away", "image")
    except InvalidInput:
        return
    assert content != (tmp_path / "photo0.png").read_bytes()


@pytest.mark.parametrize(
    "url",
    [
        "http://good.example@evil.example/x", "http://evil.example\\@good.example/x",
        "http://good.example:80@evil.example/x", "http://evil.example/#@good.example/",
        "simplecache::http://good.example/x", "ftp://good.example/x", "file:///etc/passwd", "http://good.example",
        "memory://x", "github://good.example/x", "http://sub.good.example/x",
    ],
)  # fmt: skip
def test_urls_that_lead_elsewhere_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        Files(("good.example",)).refuse(url, "image")
