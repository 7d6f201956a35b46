"""The manifest: a table of edits as JSONL, CSV or Parquet, read row by row and checked as a whole."""

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bld.apps.batch.files import Files, scheme
from bld.apps.flags import kind_of
from bld.apps.typed import short, typed
from bld.errors import InvalidInput, MissingExtra
from bld.options import FIELDS, EditOptions, check

TEXTS = ("id", "image", "mask", "prompt")
NEEDED = ("image", "mask", "prompt")
MOST_QUOTED = 60  # characters of what is no text: it may be a picture
KINDS = (".jsonl", ".csv", ".parquet")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")  # it names a folder
_LONE = re.compile(r"[\ud800-\udfff]")  # a surrogate: JSON can write half of a pair, nothing can read it

Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One edit of a manifest. number: its place among the rows, from 0. line: where it stands in the file.

    changes: the options that it sets itself.
    """

    number: int
    line: int
    id: str
    image: str
    mask: str
    prompt: str
    changes: tuple[tuple[str, Any], ...]

    def options(self, common: Values) -> EditOptions:
        """Those of all rows, its own on top; a seed that nobody gives is made from its id."""
        return EditOptions(**{"seed": seed_of(self.id), **common, **dict(self.changes)})

    def value(self, option: str, common: Values) -> Any:
        """What it has for one option, without making all of them."""
        return dict(self.changes).get(option, common.get(option, FIELDS[option].default))


@dataclass(frozen=True)
class Refusal:
    """A row that cannot be edited, and why."""

    number: int
    line: int
    id: str
    reason: str


def seed_of(id: str) -> int:
    """A row's seed where none is given: the same in every run."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:4], "big") % 2**31


def digest(manifest: Path) -> str:
    """SHA-256 of the manifest. Raises InvalidInput if it cannot be read."""
    try:
        with manifest.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInput(f"manifest {manifest}: cannot be read ({error.strerror})") from error


def read(manifest: Path) -> tuple[list[Row], list[Refusal]]:
    """All rows of a manifest, and what is wrong with the others as far as the manifest alone tells.

    Relative paths are relative to the manifest's folder. Raises InvalidInput for a file that is no
    manifest at all.
    """
    folder, rows, refused = manifest.resolve().parent, [], []
    ids: dict[str, int] = {}
    for number, (line, values) in enumerate(_values(manifest)):
        id = ""
        try:
            if isinstance(values, InvalidInput):
                raise values
            id = _id(values, number)
            row = _row(values, number, line, id, folder)
            other = ids.setdefault(
                id.casefold(), line
            )  # folders whose names differ in case alone may collide
            if other != line:
                raise InvalidInput(f"id {short(id)}: line {other} has it already")
            rows.append(row)
        except InvalidInput as error:
            refused.append(Refusal(number, line, id, str(error)))
    if not rows and not refused:
        raise InvalidInput(f"manifest {manifest}: there are no rows in it")
    return rows, refused


def _id(values: Values, number: int) -> str:
    id = values.get("id")
    if id is None:
        return f"{number:06d}"
    if _is_whole(id):
        id = int(id)
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise InvalidInput(
            f"id {short(str(id))}: it names a folder; expected up to 128 letters, digits, '_', '-' and '.', "
            "no '.' or '-' in front"
        )
    return id


def _is_whole(value: Any) -> bool:
    """Whether it is a float, and a whole number: a table with gaps has whole numbers so."""
    return isinstance(value, float) and value.is_integer()


def _row(values: Values, number: int, line: int, id: str, folder: Path) -> Row:
    missing = [name for name in NEEDED if not values.get(name)]
    if missing:
        raise InvalidInput(f"{' and '.join(missing)} missing: every row has image, mask and prompt")
    for name in NEEDED:
        if not isinstance(values[name], str):
            raise InvalidInput(f"{name} {repr(values[name])[:MOST_QUOTED]}: expected a text")
    for name, value in values.items():
        if isinstance(value, str) and not name.startswith("_") and _LONE.search(value):
            raise InvalidInput(f"the {name} holds what is no text ({short(value)}): write it anew")
    if not values["prompt"].strip():
        raise InvalidInput("the prompt is empty: say what to draw inside the mask")
    changes = []
    for name, value in values.items():
        if name in TEXTS or name.startswith("_"):
            continue
        if name not in FIELDS:
            raise InvalidInput(
                f"{short(name)} is no option of an edit (bld edit --help); a column of your own begins "
                "with '_'"
            )
        changes.append((name, _option(name, value)))
    image, mask = (_place(values[name], folder) for name in ("image", "mask"))
    return Row(
        number=number, line=line, id=str(id), image=image, mask=mask, prompt=str(values["prompt"]),
        changes=tuple(sorted(changes)),
    )  # fmt: skip


def _option(name: str, value: Any) -> Any:
    kind = kind_of(name)
    if isinstance(value, _Cell):
        try:
            value = typed(value, kind)
        except ValueError as error:
            raise InvalidInput(f"{name} {short(str(value))}: expected {error}") from error
    if kind is int and _is_whole(value):
        value = int(value)
    check(name, value)
    return str(value) if kind is str else value


def _place(text: str, folder: Path) -> str:
    return text if scheme(text) else str(folder / text)


class _Cell(str):
    """Text of a CSV, which may stand for a number."""

    __slots__ = ()


def _values(manifest: Path) -> Iterator[tuple[int, Values | InvalidInput]]:
    """Each row's line and what it gives; what is left empty is not given."""
    kind = manifest.suffix.lower()
    if kind not in KINDS:
        raise InvalidInput(f"manifest {manifest}: expected a file that ends in {', '.join(KINDS)}")
    reader = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[kind]
    try:
        for line, values in reader(manifest):
            given = values
            if isinstance(values, dict):
                given = {key: value for key, value in values.items() if not _is_gap(value)}
            yield line, given
    except OSError as error:
        raise InvalidInput(f"manifest {manifest}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"manifest {manifest}: not UTF-8 text ({error.reason}); save it as UTF-8"
        ) from error


def _is_gap(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _jsonl(manifest: Path) -> Iterator[tuple[int, Values | InvalidInput]]:
    with manifest.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
                if not isinstance(values, dict):
                    raise ValueError("expected an object, {...}")
                yield line, values
            except (ValueError, RecursionError) as error:
                yield line, InvalidInput(f"not a line of JSON ({error})")


def _csv(manifest: Path) -> Iterator[tuple[int, Values | InvalidInput]]:
    with manifest.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, strict=True)
        try:
            names = [name for name in table.fieldnames or () if name and not name.startswith("_")]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise InvalidInput(f"manifest {manifest}: two columns are named {short(twice)}; leave one")
            for cells in table:
                if None in cells:
                    yield table.line_num, InvalidInput("it has more cells than the first line has names")
                else:
                    yield table.line_num, {key: _Cell(text or "") for key, text in cells.items()}
        except csv.Error as error:
            raise InvalidInput(f"manifest {manifest}: line {table.line_num} is no CSV ({error})") from error


def _parquet(manifest: Path) -> Iterator[tuple[int, Values | InvalidInput]]:
    pyarrow = arrow()
    try:
        with pyarrow.parquet.ParquetFile(manifest) as file:
            batches = file.iter_batches(batch_size=4096)
            rows = (values for batch in batches for values in batch.to_pylist())
            yield from enumerate(rows, start=1)
    except pyarrow.ArrowInvalid as error:
        reason = str(error).partition("\n")[0]
        raise InvalidInput(f"manifest {manifest}: not a Parquet file ({reason})") from error


def arrow() -> Any:
    """pyarrow, with its Parquet. Raises MissingExtra without it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("Parquet needs pyarrow: pip install 'blended-latent-diffusion[batch]'") from error
    return pyarrow


def check_options(rows: Iterable[Row], common: Values) -> Iterator[Refusal]:
    """The rows whose own options do not go together, or with those of all rows."""
    for row in rows:
        try:
            if row.changes:
                row.options(common)
        except InvalidInput as error:
            yield Refusal(row.number, row.line, row.id, str(error))


Seen = tuple[int, int] | InvalidInput | None
"""Of a file: the size, why it cannot be read, or nothing: it is behind a URL and there."""


def check_files(rows: Iterable[Row], common: Values, files: Files) -> Iterator[Refusal]:
    """The rows whose photograph or mask cannot be edited, as far as the heads of the files tell.

    Each distinct file is looked at once.
    """
    from concurrent.futures import ThreadPoolExecutor

    from bld.decode import picture_size

    rows = list(rows)
    seen: dict[tuple[str, str, int], Seen] = {}

    def look(what: str, place: str, max_pixels: int) -> Seen:
        try:
            if not scheme(place):
                return picture_size(place, max_pixels=max_pixels, what=what)
            files.refuse_missing(place, what)
        except InvalidInput as error:
            return error
        return None

    def asked(row: Row) -> list[tuple[str, str, int]]:
        limit = row.value("max_pixels", common)
        return [("image", row.image, limit), ("mask", row.mask, limit)]

    remote = dict.fromkeys(key for row in rows for key in asked(row) if scheme(key[1]))
    with ThreadPoolExecutor(32) as pool:  # they wait for a network
        seen.update(zip(remote, pool.map(lambda key: look(*key), remote), strict=True))
    for row in rows:
        sizes = []
        for key in asked(row):
            if key not in seen:
                seen[key] = look(*key)
            found = seen[key]
            if isinstance(found, InvalidInput):
                yield Refusal(row.number, row.line, row.id, str(found))
                break
            sizes.append(found)
        else:
            yield from _check_sizes(row, sizes, common)


def _check_sizes(row: Row, sizes: list[tuple[int, int] | None], common: Values) -> Iterator[Refusal]:
    image, mask = sizes
    if image is None or mask is None or row.value("resize_mask", common):
        return
    if sorted(image) != sorted(mask):  # either may be turned by its EXIF
        yield Refusal(
            row.number, row.line, row.id,
            f"the mask is {mask[1]}x{mask[0]}, the image {image[1]}x{image[0]}; give a mask of the image's "
            "size, or allow resizing it with resize_mask",
        )  # fmt: skip
