"""What `bld eval` does: a contest of methods, its report, and its times."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bld.apps.contact import contact_sheet, fitted
from bld.apps.progress import quiet_libraries, shown
from bld.baselines.entrants import GUIDED, PAINTERS, load_painter
from bld.baselines.painter import BaselineEditor, Perceptual
from bld.baselines.remote import RemoteEdits
from bld.classify import load_classifier
from bld.editor import Editor
from bld.errors import InvalidInput
from bld.evaluation import ranking, report, suite, timing
from bld.evaluation.distance import ClassifierDistance, Distance, Lpips
from bld.evaluation.methods import ByEditor, Folder, Function, Method, Remote, baseline_options
from bld.evaluation.run import SETTINGS, Judges, is_whole, rows, run, settle, shared
from bld.evaluation.suite import Suite
from bld.images import save_png
from bld.models.load import find, is_single, lasting, pick_device
from bld.options import PRESETS, EditOptions, LoadOptions, check
from bld.rank import RANKER_FILES, load_ranker

TILE, COLUMNS = 128, 10  # px of a picture on a sheet; how many cases the report's shows
SHOWN = 3  # pictures of each end on the ranking's sheet
ALL = ("bld", *PAINTERS)
REMOTE_BATCH = 10  # what an images/edits endpoint makes at most


class Contest:
    """A run in a folder: the judges are loaded once, the methods one after the other."""

    def __init__(
        self,
        folder: Path,
        model: str,
        loading: LoadOptions,
        *,
        ranker: str,
        classifier: str,
        lpips: list[Path],
    ) -> None:
        """Raises InvalidInput or ModelUnavailable for judges that cannot be loaded."""
        if len(lpips) not in (0, 2):
            raise InvalidInput(f"--lpips came {len(lpips)} times: AlexNet's checkpoint, and LPIPS' heads")
        quiet_libraries()
        judge = load_classifier(classifier, model, device=loading.device, pickles=loading.allow_pickle)
        perceptual = Lpips(*lpips, device=pick_device(loading.device)) if lpips else None
        distance: Distance = perceptual or ClassifierDistance(judge)
        self.folder, self.judges = folder, Judges(judge, distance)
        self.entry = Entry(model, loading, ranker, perceptual)

    def run(
        self,
        suite_name: str,
        cases: int | None,
        methods: str,
        options: EditOptions,
        *,
        candidates: int | None = None,
        steps: int | None = None,
    ) -> list[str]:
        """Run what is missing of every method, and write the report; returns its notes.

        candidates, steps: of the baselines.
        """
        found = open_suite(suite_name)
        found = found.first(cases) if cases else found
        self.judges.check(found)
        loading = lasting(self.entry.loading)
        del loading["compile"]  # which changes pictures by rounding
        settings = {
            **shared(found, self.judges.classifier), "cases": len(found.cases),
            "distance": self.judges.distance.name, "model": self.entry.model, **loading,
            "ranker": self.entry.ranker, **asdict(options),
            "baseline_candidates": candidates, "baseline_steps": steps,
        }  # fmt: skip
        settle(self.folder, settings)
        for asked in asked_methods(methods):
            with (
                self.entry.method(asked, options, candidates=candidates, steps=steps) as method,
                shown(quiet=False) as (status, progress),
            ):
                status(method.name)
                run(found, method, self.judges, self.folder, lambda d, t, m=method: progress(m.name, d, t))  # type: ignore[misc]
        return _write_report(found, settings, self.folder)


def asked_methods(methods: str) -> list[str]:
    """The words of --methods; "all" is our editor and every baseline."""
    return [
        word for asked in methods.split(",") for word in (ALL if asked.strip() == "all" else [asked.strip()])
    ]


@dataclass(frozen=True)
class Entry:
    """How methods come in: our model, the one ranker of all, and the distance in the baselines' losses."""

    model: str
    loading: LoadOptions
    ranker: str
    perceptual: Perceptual | None = None

    def editor(self, kind: str, where: str) -> Editor:
        """Our editor, or a baseline's."""
        if kind == "bld":
            return Editor.from_pretrained(self.model, ranker=self.ranker, options=self.loading)
        weights = Path(where).expanduser() if where else None
        device = pick_device(self.loading.device)
        clip = self._clip() if kind in GUIDED else None
        painter = load_painter(
            kind, weights, clip, device=device, pickles=self.loading.allow_pickle, perceptual=self.perceptual
        )
        pickles = self.loading.allow_pickle
        ranker = load_ranker(self.ranker, self.model, device=self.loading.device, pickles=pickles)
        return BaselineEditor(painter, ranker, device=device)

    def _clip(self) -> Path:
        """The folder of the CLIP that guides. Raises InvalidInput if there is none."""
        if self.ranker not in ("auto", "none"):
            return find(self.ranker, RANKER_FILES)
        own = None if is_single(self.model) else find(self.model) / "ranker"
        if own is None or not own.is_dir():
            raise InvalidInput(
                f"{self.model} has no CLIP of its own, and baselines need one: name it with --ranker"
            )
        return own

    @contextmanager
    def method(
        self, asked: str, options: EditOptions, *, candidates: int | None, steps: int | None
    ) -> Iterator[Method]:
        """The method that a word of --methods names. Raises InvalidInput if there is none."""
        name, kind, where = parted(asked)
        if (kind == "bld" and not where) or kind in PAINTERS:
            editor = self.editor(kind, where)
            if isinstance(editor, BaselineEditor):
                options = baseline_options(editor.painter, options, candidates=candidates, steps=steps)
            yield ByEditor(editor, options, name)
        elif kind == "folder" and where:
            yield Folder(Path(where), name)
        elif kind == "python" and where:
            yield Function(where, name)
        elif kind == "remote" and where:
            remote = RemoteEdits(where)
            try:
                yield Remote(remote, name, min(options.candidates, REMOTE_BATCH))
            finally:
                remote.close()
        else:
            raise InvalidInput(
                f"--methods {asked}: expected all, {', '.join(ALL)}, folder:PATH, python:MODULE:FUNCTION or "
                "remote:URL"
            )


def parted(asked: str) -> tuple[str, str, str]:
    """Name, kind and whereabouts in a word of --methods. Raises InvalidInput for a name that is no file's."""
    name, equals, rest = asked.partition("=")
    kind, _, where = (rest if equals else asked).partition(":")
    name = name if equals else kind
    if not name.replace("-", "").replace("_", "").isalnum():
        raise InvalidInput(f"--methods {asked}: a name has letters, digits, - and _ alone")
    return name, kind, where


def open_suite(name: str) -> Suite:
    """The suite of a name or a path; "mini" and "mini-200" ask for the names of the vocabulary."""
    if name not in suite.MINI_CASES:
        return Suite.read(Path(name))
    from bld.training.vocabulary import vocabulary

    classes = [(thing.name, thing.phrase()) for thing in vocabulary()]
    return suite.mini(name, Path("runs") / "suites" / name, classes)


def _entered(found: Suite, folder: Path) -> tuple[list[str], list[str]]:
    """The methods that have all rows in a run's folder: ours, the baselines, the others. And those with some.

    Raises InvalidInput if none has all.
    """
    begun = sorted(path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("[0-9]*.json")))
    begun.sort(key=lambda name: ALL.index(name) if name in ALL else len(ALL))
    whole = [name for name in begun if is_whole(found, name, folder)]
    if not whole:
        raise InvalidInput(
            f"{folder}: no method has the rows of all {len(found.cases)} cases; run bld eval run again"
        )
    return whole, [name for name in begun if name not in whole]


def opened(folder: Path) -> tuple[Suite, dict[str, Any]]:
    """The suite and the settings of a run. Raises InvalidInput if the folder is not one."""
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return Suite.read(Path(settings["suite"])).first(settings["cases"]), settings
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{folder}: not the folder of a run ({error})") from error


def report_again(folder: Path) -> list[str]:
    """Write the report of a run from its rows; returns its notes. Raises InvalidInput for no run."""
    found, settings = opened(folder)
    return _write_report(found, settings, folder)


def _write_report(found: Suite, settings: dict[str, Any], folder: Path) -> list[str]:
    """The report of the methods that have all rows, and report.png: the suite's first photographs, and below
    them every method's best. Returns a note of who is not in it yet.
    """
    (names, unfinished), cases = _entered(found, folder), found.cases[:COLUMNS]
    report.write(found, names, settings, folder)
    sheet = [[(case.prompt, _tile(found.folder / case.photograph)) for case in cases]]
    sheet += [
        [(name, _tile(folder / name / f"{case.number:03d}" / "00.png")) for case in cases] for name in names
    ]
    save_png(folder / "report.png", np.asarray(contact_sheet(sheet)))
    return [f"not in the report, for want of rows: {', '.join(unfinished)}"] if unfinished else []


def _tile(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return fitted(picture.convert("RGB"), TILE)


def ranking_of(folder: Path, method: str, cases: int) -> str:
    """The table of a run's ranking, as Markdown; writes ranking.png. Raises InvalidInput for no run.

    The sheet has a row for each of a method's first cases: its best candidates, then its worst.
    """
    found, _ = opened(folder)
    names, _ = _entered(found, folder)
    if method not in names:
        raise InvalidInput(f"--method {method}: {folder} has {', '.join(names)}")
    orders = [ranking.ranked(name, rows(found, name, folder)) for name in names]
    sheet = []
    for case in found.cases[:cases]:
        top, bottom = ranking.shown(folder, method, case.number, SHOWN)
        sheet.append([
            (f"{case.prompt}, {end} {number + 1}", _tile(file))
            for end, files in (("best", top), ("worst", bottom))
            for number, file in enumerate(files)
        ])  # fmt: skip
    save_png(folder / "ranking.png", np.asarray(contact_sheet(sheet)))
    return ranking.table([order for order in orders if order])


def time_table(
    suite_name: str, entry: Entry, methods: str, *, candidates: int | None, ways: Sequence[str], repeats: int
) -> str:
    """Tables 2 and 3 of the paper for a model and the baselines, and as it has them, as Markdown.

    candidates: of a whole batch, if not what each method's authors make.
    """
    for way in ways:
        check("reconstruct", way)
    quiet_libraries()
    found = open_suite(suite_name)
    lines = ["| method | reconstruction | candidates | seconds |", "|---|---|---|---|"]
    sizes = ["| method | parameters, M |", "|---|---|"]
    for asked in asked_methods(methods):
        name, kind, where = parted(asked)
        if kind not in ALL:
            raise InvalidInput(f"--methods {asked}: what can be timed is all, {', '.join(ALL)}")
        editor = entry.editor(kind, where)
        painter = editor.painter if isinstance(editor, BaselineEditor) else None
        options = EditOptions(candidates=candidates or PRESETS["paper"]["candidates"])
        if painter:
            options = baseline_options(painter, options, candidates=candidates, steps=None)
        with shown(quiet=False) as (_, progress):
            times = timing.timed(
                editor, found, options=options, candidates=sorted({1, options.candidates}), repeats=repeats,
                ways=[painter.reconstruct] if painter else ways,
                progress=lambda done, total, name=name: progress(name, done, total),  # type: ignore[misc]
            )  # fmt: skip
        lines += [f"| {name} | {row.reconstruct} | {row.candidates} | {row.seconds:.2f} |" for row in times]
        sizes.append(f"| {name} | {timing.parameters(painter or editor.model) / 1e6:.1f} |")
    ranker = timing.parameters(editor.ranker) / 1e6 if editor.ranker else 0.0
    sizes.append(f"| the ranker, which also guides | {ranker:.1f} |")
    return "\n".join([*lines, "", *sizes, "", *report.published_times()])
