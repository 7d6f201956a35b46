"""What an edit leaves for its visitor: thumbnails, a comparison, files to take home."""

import html
import os
import tempfile
import zipfile
from pathlib import Path

from bld.apps.output import write
from bld.apps.record import Inputs, record
from bld.apps.studio.canvas import canvas_size, reduced
from bld.apps.studio.edits import close_up
from bld.apps.studio.visit import Edit, Job, Visit
from bld.editor import Candidate, EditResult
from bld.errors import Cancelled
from bld.images import Photograph, save_png, write_text_atomic
from bld.masks import Box
from bld.options import LoadOptions

THUMBNAIL = 384  # px, longer side
HISTORY = 192
README = """\
session.json and the numbered pictures are the session: bld.Session.load(FOLDER) in Python opens it.
edits/ holds every edit as `bld edit` leaves it. In this folder,

    bld info edits/01/result.png            says how it was made, and the command that makes it again
    bld reconstruct edits/01 --output DIR   finishes it in another way

edits/01/image.png and mask.png are what was edited (with the scribble, if there was one).
"""


def keep(visit: Visit, job: Job, result: EditResult, loading: LoadOptions, ranker: str) -> Edit:
    """Write an edit into its visit's folder, and make it the one whose candidates are shown.

    Its folder is there once it is whole. Raises Cancelled if another photograph was opened meanwhile.
    """
    home, number = visit.folder, visit.edits + 1
    folder = home / "edits" / f"{number:02d}"
    try:
        with tempfile.TemporaryDirectory(dir=home) as stage:
            made = Path(stage) / folder.name
            _write(made, job, result, loading, ranker)
            folder.parent.mkdir(exist_ok=True)
            made.rename(folder)
    finally:
        if visit.folder != home:  # which is gone, and what went wrong with it is nobody's to be told
            raise Cancelled("another photograph was opened")
    thumbnails = tuple(folder / _thumbnail(i) for i in range(len(result.candidates)))
    visit.edits, visit.chosen, visit.edit = number, 0, Edit(job, result, folder, thumbnails)
    return visit.edit


def _write(folder: Path, job: Job, result: EditResult, loading: LoadOptions, ranker: str) -> None:
    """An edit as `bld edit` leaves it, and beside it image.png, mask.png and what the page shows.

    Paths in the record are those of the session's zip.
    """
    folder.mkdir()
    paths = {"image": folder / "image.png", "mask": folder / "mask.png"}
    save_png(paths["image"], job.source)
    save_png(paths["mask"], job.mask)
    chosen = ranker if result.ranker else "none"
    facts = record(result, Inputs(str(paths["image"]), str(paths["mask"]), loading, chosen))
    facts["request"].update({what: f"edits/{folder.name}/{path.name}" for what, path in paths.items()})
    write(result, facts, folder, metadata=True)
    for i, candidate in enumerate(result.candidates):
        close_up(candidate.photograph, result.crop.box, THUMBNAIL).save(folder / _thumbnail(i), quality=90)


def _thumbnail(number: int) -> str:
    return f"thumbnail-{number:02d}.webp"


def gallery(edit: Edit) -> list[tuple[str, str]]:
    """The candidates close up, best first, with what there is to say of each."""
    return [
        (str(path), caption(i, candidate))
        for i, (path, candidate) in enumerate(zip(edit.thumbnails, edit.result.candidates, strict=True))
    ]


def caption(number: int, candidate: Candidate) -> str:
    """One line: place, score, background."""
    score = "" if candidate.score is None else f" · score {candidate.score:.3f}"
    return f"{number + 1}{score} · {background(candidate)}"


def background(candidate: Candidate) -> str:
    """What an edit did to the background, in a few words."""
    found = candidate.fidelity
    if found.max_error == 0:
        return "background unchanged"
    psnr = "" if found.psnr is None else f", {found.psnr:.1f} dB"
    return f"background off by up to {found.max_error:g}/255{psnr}"


def details(edit: Edit, number: int) -> str:
    """About one candidate, as HTML."""
    result, candidate = edit.result, edit.result.candidates[number]
    found = candidate.fidelity
    lines = [
        f"<b>Candidate {number + 1} of {len(result.candidates)}</b>, seed {candidate.seed}"
        + ("" if candidate.score is None else f", score {candidate.score:.3f}"),
        background(candidate) + ("" if found.max_error == 0 else f", SSIM {found.ssim:.4f}")
        + ("" if found.seam is None else f"; seam {found.seam:.2f} (1 is as smooth as it was)"),
        f"{html.escape(result.prompt)} · {sum(result.seconds.values()):.1f} s",
        *(html.escape(note) for note in result.notes),
    ]  # fmt: skip
    return "<div class='bld-details'>" + "".join(f"<p>{line}</p>" for line in lines) + "</div>"


def comparison(visit: Visit, *, whole: bool) -> tuple[str, str]:
    """Before and after of the chosen candidate: the whole picture, or the part that the model worked on."""
    edit = visit.last_edit
    result, after = edit.result, edit.result.candidates[visit.chosen].photograph
    before = visit.open_session.revisions[edit.job.parent].photograph
    view = "whole" if whole else "close"
    return (
        _screen(before, None if whole else result.crop.box, edit.folder / f"{view}-before.webp"),
        _screen(after, None if whole else result.crop.box, edit.folder / f"{view}-{visit.chosen:02d}.webp"),
    )


def _screen(photograph: Photograph, box: Box | None, path: Path) -> str:
    """A picture for a screen, written once."""
    if not path.exists():
        box = box or Box(0, 0, *photograph.size)
        close_up(photograph, box, max(canvas_size((box.height, box.width)))).save(path, quality=92)
    return str(path)


def history(visit: Visit) -> list[tuple[str, str]]:
    """Every revision of the session as a thumbnail with its prompt."""
    if visit.session is None:
        return []
    shown = []
    for number, revision in enumerate(visit.session.revisions):
        path = visit.folder / "history" / f"{number:03d}.webp"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            scale = min(1.0, HISTORY / max(revision.photograph.size))
            height, width = (max(1, round(side * scale)) for side in revision.photograph.size)
            reduced(revision.photograph, (height, width)).save(path, quality=90)
        shown.append((str(path), f"{number} · {revision.made.get('prompt', 'photograph')}"))
    return shown


def picture_file(visit: Visit) -> str:
    """The chosen candidate as a PNG that says how it was made, under a name to keep."""
    edit = visit.last_edit
    name = f"{visit.name}-edit-{edit.folder.name}-candidate-{visit.chosen + 1}.png"
    path = edit.folder / name
    if not path.exists():
        os.link(edit.folder / "candidates" / f"{visit.chosen:02d}.png", path)
    return str(path)


def session_zip(visit: Visit) -> str:
    """The session and every edit of it as a zip: a folder for `bld.Session.load` and for the command line."""
    folder = visit.folder / "session"
    visit.open_session.save(folder)
    write_text_atomic(folder / "README.txt", README)
    path = visit.folder / f"{visit.name}-session.zip"
    wanted: list[tuple[Path, Path]] = [(p, p.relative_to(folder)) for p in sorted(folder.iterdir())]
    for edit in sorted((visit.folder / "edits").glob("*")):
        entries = ("image.png", "mask.png", "result.png", "grid.png", "edit.json", "latents.safetensors")
        files = [edit / name for name in entries] + sorted((edit / "candidates").iterdir())
        wanted += [(file, file.relative_to(visit.folder)) for file in files]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # pictures are packed already
        for file, name in wanted:
            archive.write(file, name)
    return str(path)
