"""What `bld eval` does: a contest of methods, its report, and its times."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bld.apps.progress import quiet_libraries, shown
from bld.baselines.remote import RemoteEdits
from bld.classify import load_classifier
from bld.editor import Editor
from bld.errors import InvalidInput
from bld.evaluation import report, suite, timing
from bld.evaluation.distance import ClassifierDistance, Distance, Lpips
from bld.evaluation.methods import Folder, Function, Method, Ours, Remote
from bld.evaluation.run import SETTINGS, Judges, run, settle
from bld.evaluation.suite import Suite
from bld.options import EditOptions, LoadOptions, check

MINI = "mini"  # the suite that comes with the project
REMOTE_BATCH = 10  # what an images/edits endpoint makes at most


class Contest:
    """A run in a folder: the judges are loaded once, the methods one after the other."""

    def __init__(
        self, folder: Path, model: str, loading: LoadOptions, classifier: str, lpips: list[Path]
    ) -> None:
        """Raises InvalidInput or ModelUnavailable for judges that cannot be loaded."""
        if len(lpips) not in (0, 2):
            raise InvalidInput(f"--lpips came {len(lpips)} times: AlexNet's checkpoint, and LPIPS' heads")
        quiet_libraries()
        self.folder, self.model, self.loading = folder, model, loading
        judge = load_classifier(classifier, model, device=loading.device)
        distance: Distance = Lpips(*lpips) if lpips else ClassifierDistance(judge)
        self.judges = Judges(judge, distance)

    def run(self, suite_name: str, cases: int | None, methods: str, options: EditOptions) -> None:
        """Run what is missing of every method, and write the report."""
        found = open_suite(suite_name, self.judges.classifier.labels)
        found = found.first(cases) if cases else found
        settings = {
            "suite": str(found.folder), "cases": len(found.cases), "model": self.model,
            "classifier": self.judges.classifier.name, "classifier_revision": self.judges.classifier.revision,
            "distance": self.judges.distance.name, "options": asdict(options),
        }  # fmt: skip
        settle(self.folder, settings)
        names = []
        for asked in methods.split(","):
            with self._method(asked.strip(), options) as method, shown(quiet=False) as (status, progress):
                status(method.name)
                run(found, method, self.judges, self.folder, lambda d, t, m=method: progress(m.name, d, t))  # type: ignore[misc]
                names.append(method.name)
        report.write(found, _entered(self.folder), settings, self.folder)

    @contextmanager
    def _method(self, asked: str, options: EditOptions) -> Iterator[Method]:
        """The method that a word of --methods names. Raises InvalidInput if there is none."""
        name, equals, rest = asked.partition("=")
        kind, _, where = (rest if equals else asked).partition(":")
        name = name if equals else kind
        if not name.replace("-", "").replace("_", "").isalnum():
            raise InvalidInput(f"--methods {asked}: a name has letters, digits, - and _ alone")
        if kind == "bld" and not where:
            yield Ours(Editor.from_pretrained(self.model, options=self.loading), options, name)
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
                f"--methods {asked}: expected bld, folder:PATH, python:MODULE:FUNCTION or remote:URL"
            )


def open_suite(name: str, labels: tuple[str, ...]) -> Suite:
    """The suite of a name or a path; "mini" asks for the classes of the bundled judge."""
    if name != MINI:
        return Suite.read(Path(name))
    from bld.training.vocabulary import vocabulary

    classes = [(thing.name, thing.phrase()) for thing in vocabulary() if thing.name in labels]
    return suite.mini(Path("runs") / "suites" / MINI, classes)


def _entered(folder: Path) -> list[str]:
    """The methods that have rows in a run's folder, ours first."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.json")))
    return sorted(names, key=lambda name: name != "bld")


def opened(folder: Path) -> tuple[Suite, dict[str, Any]]:
    """The suite and the settings of a run. Raises InvalidInput if the folder is not one."""
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return Suite.read(Path(settings["suite"])).first(settings["cases"]), settings
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{folder}: not the folder of a run ({error})") from error


def report_again(folder: Path) -> Path:
    """Write the report of a run from its rows; returns where it is. Raises InvalidInput for no run."""
    found, settings = opened(folder)
    report.write(found, _entered(folder), settings, folder)
    return folder / "report.md"


def time_table(
    suite_name: str, model: str, loading: LoadOptions, *, candidates: int, ways: Sequence[str], repeats: int
) -> str:
    """Tables 2 and 3 of the paper for a model, as Markdown."""
    for way in ways:
        check("reconstruct", way)
    quiet_libraries()
    editor = Editor.from_pretrained(model, options=loading)
    found = open_suite(suite_name, load_classifier("auto").labels)
    with shown(quiet=False) as (_, progress):
        rows = timing.timed(
            editor, found, candidates=(1, candidates), ways=ways,
            repeats=repeats, progress=lambda done, total: progress("time", done, total),
        )  # fmt: skip
    lines = ["| reconstruction | candidates | seconds |", "|---|---|---|"]
    lines += [f"| {row.reconstruct} | {row.candidates} | {row.seconds:.2f} |" for row in rows]
    networks = [("model", editor.model), ("ranker", editor.ranker)]
    sizes = [f"{name} {timing.parameters(part) / 1e6:.1f} M" for name, part in networks if part is not None]
    return "\n".join([*lines, "", f"Parameters: {', '.join(sizes)}."])
