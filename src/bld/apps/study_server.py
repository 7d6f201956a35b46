"""The study's own little server: the page, and a place for the answers."""

from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, StringConstraints

from bld.apps.body import Limited
from bld.errors import InvalidInput
from bld.evaluation import study
from bld.evaluation.study import Side

MAX_ANSWER = 64 * 2**10  # bytes, of which an answer takes a hundred


class Answer(BaseModel):
    """What the page sends."""

    study: str | None = None
    rater: Annotated[str, StringConstraints(pattern=r"^[\w-]{1,64}$")]
    question: int
    side: Side


def create_app(folder: Path) -> FastAPI:
    """The application for a study. Raises InvalidInput if the folder has none."""
    key = study.read_key(folder)
    page, answers = folder / study.PAGE, study.Answers(folder / study.ANSWERS)
    if not page.is_file():
        raise InvalidInput(f"{page}: not there; build the study again")
    app = FastAPI(openapi_url=None)
    app.add_middleware(Limited, max_body=MAX_ANSWER)

    @app.exception_handler(RequestValidationError)
    def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        """What is wrong with an answer, without what came."""
        return JSONResponse({"detail": "; ".join(str(one["msg"]) for one in error.errors())}, 422)

    @app.get("/", response_class=FileResponse)
    def show() -> FileResponse:
        """The page; the key stays here."""
        return FileResponse(page)

    @app.post("/answers", status_code=204)
    def keep(answer: Answer) -> Response:
        """One answer."""
        if answer.study not in (None, key.study):
            raise HTTPException(409, "That is the page of another study; please load it again.")
        if not 0 <= answer.question < len(key.questions):
            raise HTTPException(404, "no such question")
        answers.add(answer.rater, answer.question, answer.side)
        return Response(status_code=204)

    return app
