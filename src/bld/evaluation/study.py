"""A user study: two-alternative questions, and what the answers say (section 5.2, appendix C.2, table 4)."""

import base64
import hashlib
import io
import json
import random
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from bld.errors import InvalidInput
from bld.evaluation.metrics import binomial, wilson
from bld.evaluation.run import row_path
from bld.evaluation.suite import Case, Suite
from bld.images import to_pil, write_text_atomic

Kind = Literal["quality", "text"]
Side = Literal["left", "right", "equal"]
PAGE, KEY, ANSWERS = "study.html", "key.json", "answers.sqlite"
ASKED: dict[Kind, str] = {
    "quality": "Which picture looks better?",
    "text": "Which picture shows this better: {prompt}",
}
CHECK_EVERY = 10  # questions, after which one has an answer that can be seen at a glance


@dataclass(frozen=True)
class Question:
    """One question as the key has it. The page knows of its number, its text and its pictures alone.

    left, right: methods. check: the right answer, where a question is there to see that somebody looks.
    """

    number: int
    kind: Kind
    case: int
    left: str
    right: str
    check: Side | None = None


@dataclass(frozen=True)
class Key:
    """What tells the answers. study: the id that the page and its answers name, None of one built before
    there were any. ours: the method that the others are compared with.
    """

    study: str | None
    ours: str
    questions: list[Question]


@dataclass(frozen=True)
class Verdict:
    """Ours against another method. ours, other, ties: cases by the majority of their raters.

    share: of ours, a tie counting half; interval: Wilson's, of 95 %. p: the two-sided binomial test's, of the
    cases that are no ties.
    """

    other: str
    kind: Kind
    ours: int
    other_wins: int
    ties: int
    share: float
    interval: tuple[float, float]
    p: float


# --- building ---


def build(suite: Suite, run: Path, ours: str, others: Sequence[str], folder: Path, *, seed: int) -> int:
    """Write the page and its key into `folder`; returns the number of questions.

    run: the folder of an evaluation with rows of all the methods. Order and sides are shuffled by the seed.
    Raises InvalidInput if a method has no picture of a case, or is compared with itself or twice, and if the
    folder has answers to another study.
    """
    if len({ours, *others}) <= len(others):
        raise InvalidInput(f"--others {','.join(others)}: name methods beside {ours}, each of them once")
    if (folder / ANSWERS).exists():
        raise InvalidInput(f"{folder} has answers to the study that it holds: choose another folder")
    shuffled = random.Random(seed)
    asked = [
        (kind, case, other)
        for other in others
        for case in suite.cases
        for kind in get_args(Kind)
    ]  # fmt: skip
    shuffled.shuffle(asked)
    questions: list[Question] = []
    shown: list[dict[str, Any]] = []
    for kind, case, other in asked:
        if _wants_check(questions):
            _add_check(questions, shown, suite, case, shuffled)
        sides = [ours, other]
        shuffled.shuffle(sides)
        pictures = [_edit(run, method, case) for method in sides]
        questions.append(Question(len(questions), kind, case.number, sides[0], sides[1]))
        shown.append(_shown(questions[-1], ASKED[kind].format(prompt=case.prompt), pictures))
    if _wants_check(questions):
        _add_check(questions, shown, suite, suite.cases[-1], shuffled)
    folder.mkdir(parents=True, exist_ok=True)
    template = resources.files(__package__).joinpath("study_page.html").read_text(encoding="utf-8")
    data = json.dumps(shown).replace("<", "\\u003c")  # nothing of it can end the script
    key = {"ours": ours, "questions": [asdict(question) for question in questions]}
    study = hashlib.sha256((json.dumps(key) + data).encode("utf-8")).hexdigest()[:16]
    page = template.replace("/*STUDY*/", study).replace("/*QUESTIONS*/[]", data)
    write_text_atomic(folder / PAGE, page)
    write_text_atomic(folder / KEY, json.dumps({"study": study, **key}, indent=1) + "\n")
    return len(questions)


def _wants_check(questions: Sequence[Question]) -> bool:
    return len(questions) % CHECK_EVERY == CHECK_EVERY - 1


def _add_check(
    questions: list[Question], shown: list[dict[str, Any]], suite: Suite, case: Case, shuffled: random.Random
) -> None:
    """A question that everybody answers alike: the photograph, or noise."""
    photograph = to_pil(suite.open(case)).convert("RGB")
    noise = np.random.default_rng(case.number).integers(0, 256, (photograph.height, photograph.width, 3))
    pictures = {"photograph": photograph, "noise": Image.fromarray(noise.astype(np.uint8))}
    sides = list(pictures)
    shuffled.shuffle(sides)
    right: Side = "left" if sides[0] == "photograph" else "right"
    questions.append(Question(len(questions), "quality", case.number, sides[0], sides[1], right))
    shown.append(_shown(questions[-1], ASKED["quality"], [pictures[side] for side in sides]))


def _edit(run: Path, method: str, case: Case) -> Image.Image:
    path = row_path(run, method, case).with_suffix("") / "00.png"
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise InvalidInput(f"{path}: {method} has no picture of that case; run bld eval run first") from error


def _shown(question: Question, text: str, pictures: Sequence[Image.Image]) -> dict[str, Any]:
    encoded = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=90)
        encoded.append("data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii"))
    return {"number": question.number, "text": text, "left": encoded[0], "right": encoded[1]}


# --- collecting ---


def read_key(folder: Path) -> Key:
    """The key of a study. Raises InvalidInput for no study."""
    try:
        key = json.loads((folder / KEY).read_text(encoding="utf-8"))
        return Key(
            key.get("study"), str(key["ours"]), [Question(**question) for question in key["questions"]]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{folder}: not a study ({error}); build one with bld study build") from error


class Answers:
    """The answers of a study in SQLite: one for each rater and question, the last one given."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(self._connect()) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (rater TEXT, question INTEGER, side TEXT, "
                "PRIMARY KEY (rater, question))"
            )

    def add(self, rater: str, question: int, side: Side) -> None:
        """Keep an answer."""
        with closing(self._connect()) as connection, connection:
            connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (rater, question, side))

    def all(self) -> list[tuple[str, int, Side]]:
        """(rater, question, side) of all of them, in a fixed order."""
        with closing(self._connect()) as connection:
            found = connection.execute("SELECT rater, question, side FROM answers ORDER BY rater, question")
            return [(str(rater), int(question), side) for rater, question, side in found]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=10)


# --- analysing ---


def last(answers: Iterable[tuple[str, int, Side]]) -> list[tuple[str, int, Side]]:
    """One answer for each rater and question, the last one given."""
    return [(rater, number, side) for (rater, number), side in {(r, n): s for r, n, s in answers}.items()]


def attentive(found: Sequence[Question], answers: Iterable[tuple[str, int, Side]]) -> set[str]:
    """The raters who answered every check that they came to as everybody does."""
    right = {question.number: question.check for question in found if question.check}
    raters, failed = set(), set()
    for rater, number, side in answers:
        raters.add(rater)
        if number in right and side != right[number]:
            failed.add(rater)
    return raters - failed


def analyse(ours: str, found: Sequence[Question], answers: Iterable[tuple[str, int, Side]]) -> list[Verdict]:
    """Majority of each case's raters, and what the cases add up to, for each other method and kind.

    Answers of raters who failed a check do not count; "equal" is a vote for neither. A case whose votes are
    even is a tie.
    """
    given = list(answers)
    trusted = attentive(found, given)
    by_number = {question.number: question for question in found if question.check is None}
    votes: dict[tuple[str, Kind], dict[int, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for rater, number, side in given:
        question = by_number.get(number)
        if question is None or rater not in trusted:
            continue
        other = question.right if question.left == ours else question.left
        chosen = {"left": question.left, "right": question.right, "equal": "equal"}[side]
        votes[other, question.kind][question.case][chosen] += 1
    verdicts = []
    for (other, kind), cases in sorted(votes.items()):
        leads = [counts[ours] - counts[other] for counts in cases.values()]
        wins, losses = sum(lead > 0 for lead in leads), sum(lead < 0 for lead in leads)
        ties = len(leads) - wins - losses
        share = (wins + ties / 2) / len(leads)
        interval = wilson(wins + ties / 2, len(leads))
        p = binomial(wins, wins + losses)
        verdicts.append(Verdict(other, kind, wins, losses, ties, share, interval, p))
    return verdicts
