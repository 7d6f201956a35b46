"""From rows to tables: Markdown, CSV, and one page of HTML with the pictures."""

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bld.evaluation import metrics
from bld.evaluation.published import PUBLISHED, Published
from bld.evaluation.run import rows
from bld.evaluation.suite import Suite
from bld.images import to_pil, write_text_atomic

THUMBNAIL = 160  # px
SHOWN = 12  # cases on the page, the first ones


@dataclass(frozen=True)
class Summary:
    """One method over a suite. Shares in percent; an interval is that of 95 %.

    batch_precision: candidates that show the class, the mean over cases. top_precision: cases whose first
    candidate does. diversity: among correct candidates of a case. The rest are means over all candidates,
    but for the largest error of any, and the PSNR, which is of those whose background is not exact.
    """

    method: str
    batch: float
    batch_precision: float
    top_precision: float
    top_interval: tuple[float, float]
    diversity: float | None
    background_max_error: float
    background_psnr: float | None
    seam: float | None
    clipped: float
    isolated: float


def summary(method: str, found: Sequence[dict[str, Any]]) -> Summary:
    """What a method's rows add up to."""
    correct = [[at < metrics.TOP for at in row["place"]] for row in found]
    first = sum(row[0] for row in correct)
    low, high = metrics.wilson(first, len(correct))

    def over_all(key: str) -> float | None:
        return metrics.mean([value for row in found for value in row[key]])

    return Summary(
        method=method,
        batch=float(np.mean([len(row) for row in correct])),
        batch_precision=100 * float(np.mean([np.mean(row) for row in correct])),
        top_precision=100 * first / len(correct),
        top_interval=(100 * low, 100 * high),
        diversity=metrics.mean([row["diversity"] for row in found]),
        background_max_error=max(value for row in found for value in row["background_max_error"]),
        background_psnr=over_all("background_psnr"),
        seam=over_all("seam"),
        clipped=100 * (over_all("clipped") or 0.0),
        isolated=100 * (over_all("isolated") or 0.0),
    )


COLUMNS = (
    "method", "candidates", "precision of the batch, %", "precision of the first, % (95 %)", "diversity",
    "background: max error", "PSNR, dB", "seam", "clipped, %", "isolated, %",
)  # fmt: skip


PUBLISHED_BELOW = "Published in the paper, on other models, photographs and hardware:"
PUBLISHED_COLUMNS = (
    "method", "candidates", "precision of the batch, %", "precision of the first, %", "diversity (LPIPS)",
)  # fmt: skip

TIMES_COLUMNS = (
    "method", "candidates", "seconds for one", "for all", "both with the background", "parameters, M",
    "of CLIP, M",
)  # fmt: skip


def cells(s: Summary) -> list[str]:
    """A row of the table."""
    low, high = s.top_interval
    return [
        s.method, f"{s.batch:g}", f"{s.batch_precision:.1f}",
        f"{s.top_precision:.1f} ({low:.0f} to {high:.0f})",
        "-" if s.diversity is None else f"{s.diversity:.3f}", f"{s.background_max_error:.0f}",
        "exact" if s.background_psnr is None else f"{s.background_psnr:.1f}",
        "-" if s.seam is None else f"{s.seam:.2f}", f"{s.clipped:.2f}", f"{s.isolated:.2f}",
    ]  # fmt: skip


def markdown(suite: Suite, summaries: Sequence[Summary], settings: dict[str, Any]) -> str:
    """The tables as Markdown: measured, and published by the paper."""
    lines = [
        f"{len(suite.cases)} cases of {suite.name}; classifier {settings['classifier']}, diversity by "
        f"{settings['distance']}.",
        "",
        *_table(COLUMNS, [cells(s) for s in summaries]),
        "",
        PUBLISHED_BELOW,
        "",
        *_table(PUBLISHED_COLUMNS, [_published(row) for row in PUBLISHED]),
    ]
    return "\n".join(lines) + "\n"


def published_times() -> list[str]:
    """Tables 2 and 3 as the paper has them, as lines of Markdown."""
    body = []
    for row in PUBLISHED:
        again = " and ".join(f"{seconds:g}" for seconds in row.reconstructed or ()) or "-"
        sizes = [f"{1000 * size:.0f}" for size in row.parameters]
        body.append([row.method, str(row.batch), f"{row.one:g}", _or_dash(row.all), again, *sizes])
    return [PUBLISHED_BELOW, "", *_table(TIMES_COLUMNS, body)]


def _table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *body)]
    return [lines[0], "|---" * len(columns) + "|", *lines[1:]]


def _published(row: Published) -> list[str]:
    shares = [_or_dash(row.batch_precision), f"{row.top_precision:g}", _or_dash(row.diversity)]
    return [row.method, str(row.batch), *shares]


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def as_csv(summaries: Sequence[Summary]) -> str:
    """The summaries, one a line, with their full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [name for name in Summary.__dataclass_fields__ if name != "top_interval"]
    writer.writerow([*names, "top_low", "top_high"])
    for s in summaries:
        writer.writerow([*(getattr(s, name) for name in names), *s.top_interval])
    return text.getvalue()


def page(suite: Suite, summaries: Sequence[Summary], settings: dict[str, Any], folder: Path) -> str:
    """One page of HTML that needs no other file: the table, bars, and the first cases side by side."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(s)) + "</tr>" for s in summaries
    )
    bars = "".join(_bar(s) for s in summaries)
    about = html.escape(
        f"{len(suite.cases)} cases of {suite.name}; classifier {settings['classifier']}, diversity by "
        f"{settings['distance']}"
    )
    names = "".join(f"<th>{html.escape(s.method)}</th>" for s in summaries)
    shown = min(SHOWN, len(suite.cases))
    pictures = "".join(_pictures(suite, number, summaries, folder) for number in range(shown))
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Evaluation</title>"
        f"<style>{STYLE}</style><h1>Evaluation</h1><p>{about}</p>"
        f"<table><tr>{head}</tr>{body}</table><h2>Precision of the first candidate</h2>{bars}"
        "<p>The whisker is the 95 % interval.</p>"
        f"<h2>The first {shown} cases, each method's first candidate</h2>"
        f"<table><tr><th>asked</th>{names}</tr>{pictures}</table></html>\n"
    )


STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em;color:#222;background:#fff}"
    "table{border-collapse:collapse}td,th{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:right;"
    "vertical-align:top}td:first-child,th:first-child{text-align:left}img{display:block}"
    ".bar{display:flex;align-items:center;gap:.6em;margin:.3em 0}.bar span{width:14em}"
    "svg{background:#f3f3f3}"
)


def _bar(s: Summary) -> str:
    low, high = s.top_interval
    return (
        f"<div class='bar'><span>{html.escape(s.method)}</span><svg width='400' height='18'>"
        f"<rect width='{4 * s.top_precision:.1f}' height='18' fill='#4a7fb5'/>"
        f"<line x1='{4 * low:.1f}' x2='{4 * high:.1f}' y1='9' y2='9' stroke='#222' stroke-width='2'/></svg>"
        f"{s.top_precision:.1f} %</div>"
    )


def _pictures(suite: Suite, number: int, summaries: Sequence[Summary], folder: Path) -> str:
    case = suite.cases[number]
    photograph = to_pil(suite.open(case)).convert("RGB")
    shade = Image.fromarray((255 - 150 * case.mask((photograph.height, photograph.width))).astype(np.uint8))
    asked = Image.composite(photograph, Image.new("RGB", photograph.size, "white"), shade)
    files = [folder / s.method / f"{case.number:03d}" / "00.png" for s in summaries]
    edits = [Image.open(file).convert("RGB") for file in files]
    shown = "".join(f"<td>{_image(picture)}</td>" for picture in edits)
    return f"<tr><td>{_image(asked)}{html.escape(case.prompt)}</td>{shown}</tr>"


def _image(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=85)
    return f"<img alt='' src='data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}'>"


def write(suite: Suite, methods: Sequence[str], settings: dict[str, Any], folder: Path) -> list[Summary]:
    """Write report.md, report.csv and report.html into a run's folder; returns what they say."""
    summaries = [summary(method, rows(suite, method, folder)) for method in methods]
    write_text_atomic(folder / "report.md", markdown(suite, summaries, settings))
    write_text_atomic(folder / "report.csv", as_csv(summaries))
    write_text_atomic(folder / "report.html", page(suite, summaries, settings, folder))
    return summaries
