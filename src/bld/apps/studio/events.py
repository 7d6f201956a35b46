"""What happens on the page: each handler takes what its visitor did to their visit, and says what to show."""

import functools
import html
import inspect
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from bld.apps.studio import canvas, controls, layout, results
from bld.apps.studio.edits import Runner, Working
from bld.apps.studio.visit import Edit, Visit, Visits, file_stem
from bld.errors import BldError, Cancelled, InvalidInput
from bld.images import open_photograph, read_mask, resize_mask
from bld.masks import check_same_size
from bld.options import LoadOptions

WAITING = 16  # edits of all visitors that are asked for at a time
PROMPT_LIMIT = 4000  # characters: no model reads as many, and a message would quote them

Shown = dict[Any, Any]  # components, and what they show from now on


def told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """What a handler raises becomes one line on the page, escaped: it may quote a visitor.

    What the package did not raise on purpose goes to the terminal too, with its traceback.
    """

    def line(cause: Exception) -> Any:
        if not isinstance(cause, BldError):
            traceback.print_exception(cause)
            cause = BldError(f"that went wrong ({type(cause).__name__}): the studio's terminal says where")
        text = html.escape(controls.in_words(str(cause)))
        return gr.Error(text, title="Cannot do that", duration=12, print_exception=False)

    @functools.wraps(handler)
    def call(*given: Any) -> Any:
        try:
            return handler(*given)
        except Exception as cause:
            raise line(cause) from cause

    @functools.wraps(handler)
    def steps(*given: Any) -> Iterator[Any]:
        try:
            yield from handler(*given)
        except Exception as cause:
            raise line(cause) from cause

    return steps if inspect.isgeneratorfunction(handler) else call


class Studio:
    """The handlers, over one loaded model, everyone's visits and the parts of the page."""

    def __init__(
        self,
        runner: Runner,
        visits: Visits,
        parts: SimpleNamespace,
        *,
        loading: LoadOptions,
        ranker: str,
        max_pixels: int,
    ) -> None:
        self.runner, self.visits, self.parts = runner, visits, parts
        self.loading, self.ranker, self.max_pixels = loading, ranker, max_pixels

    # --- the canvas ---

    def open_photograph(self, file: str, request: gr.Request) -> Shown:
        photograph = open_photograph(taken(file), max_pixels=self.max_pixels)
        visit = self.visits.of(request.session_hash)
        visit.start(photograph, file_stem(file))
        return {
            **self._picture(visit),
            **self._running(False),
            self.parts.status: layout.status("; ".join(photograph.notes)),
            self.parts.preview: "",
            self.parts.results: gr.Column(visible=False),
        }

    def open_mask(self, file: str, mode: Any, resize: bool, request: gr.Request) -> Shown:
        visit = self.visits.of(request.session_hash)
        size = visit.open_session.photograph.size
        read = read_mask(taken(file), mode=mode, max_pixels=self.max_pixels)
        values = resize_mask(read.values, size) if resize else read.values
        check_same_size(size, (values.shape[0], values.shape[1]))
        visit.put((values * 255).round().astype("uint8"))
        return {
            self.parts.canvas: layout.canvas_value(visit),
            self.parts.status: layout.status(read.note),
        }

    def mask_change(self, change: Callable[[canvas.Bytes, int], canvas.Bytes]) -> Callable[..., Shown]:
        """The handler of a button that changes the mask."""

        def changed(sent: str, amount: Any, request: gr.Request) -> Shown:
            visit = self.visits.of(request.session_hash)
            if amount is None:
                raise InvalidInput("by how many pixels? give a number")
            visit.put(change(visit.painted(painting(visit, sent)), int(amount)))
            return {self.parts.canvas: layout.canvas_value(visit)}

        return changed

    # --- editing ---

    def ask(self, request: gr.Request, sent: str, prompt: str, *values: Any) -> Shown:
        """Check what is asked for at once, and put it in line."""
        visit = self.visits.of(request.session_hash)
        if visit.job is not None:
            raise InvalidInput("your last edit is still running: wait for it, or cancel it")
        if len(prompt) > PROMPT_LIMIT:
            raise InvalidInput(f"the prompt has {len(prompt)} characters; give {PROMPT_LIMIT} at most")
        held = dict(zip(self.parts.options, values, strict=True))
        options = controls.options(held, max_pixels=self.max_pixels)
        job = visit.ask(self.runner.editor.model, painting(visit, sent), prompt, options)
        if self.visits.jobs() >= WAITING:
            raise InvalidInput(f"{WAITING} edits are waiting already: try again in a while")
        visit.job = job
        if visit.job.source is not visit.open_session.photograph and options.strength == 1:
            gr.Info("At strength 1 the model does not see the scribble: try 0.4 to 0.8.", title="Strength")
        waiting = layout.status("Waiting for the model")
        return {self.parts.status: waiting, self.parts.preview: "", **self._running(True)}

    def edit(self, request: gr.Request) -> Iterator[Shown]:
        """Run what was asked for."""
        visit, parts = self.visits.of(request.session_hash), self.parts
        job, preview = visit.job, None
        if job is None or job.cancelled.is_set():
            yield self._as_it_is()
            return
        try:
            for update in self.runner.run(job):
                if visit.job is not job:
                    raise Cancelled("cancelled")  # after its last step
                if not isinstance(update, Working):
                    edit = results.keep(visit, job, update, self.loading, self.ranker)
                    yield {**self._made(visit, edit), **self._running(False), parts.preview: ""}
                    continue
                shown = {parts.status: layout.status(update)}
                if update.preview != preview:
                    preview = update.preview
                    shown[parts.preview] = layout.preview(preview)
                yield shown
        except Cancelled:
            yield self._as_it_is()  # `cancel` has said so
        except Exception:
            yield {parts.status: "", parts.preview: "", **self._running(False)}
            raise
        finally:
            if visit.job is job:
                visit.job = None

    def cancel(self, request: gr.Request) -> Shown:
        self.visits.of(request.session_hash).cancel()
        cancelled = layout.status("Cancelled.")
        return {self.parts.status: cancelled, self.parts.preview: "", **self._running(False)}

    # --- results ---

    def choose(self, view: str, chosen: gr.SelectData, request: gr.Request) -> Shown:
        visit = self.visits.of(request.session_hash)
        visit.chosen = min(chosen.index, len(visit.last_edit.result.candidates) - 1)
        return self._chosen(visit, view)

    def look(self, view: str, request: gr.Request) -> Shown:
        return self._chosen(self.visits.of(request.session_hash), view)

    def repeat(self, request: gr.Request) -> Shown:
        visit = self.visits.of(request.session_hash)
        seed = visit.last_edit.result.candidates[visit.chosen].seed
        return {self.parts.options["seed"]: str(seed)}

    def save(self, request: gr.Request) -> Shown:
        return {self.parts.delivery: results.picture_file(self.visits.of(request.session_hash))}

    # --- the session ---

    def use(self, request: gr.Request) -> Shown:
        return self._moved(self.visits.of(request.session_hash), Visit.use)

    def undo(self, request: gr.Request) -> Shown:
        return self._moved(self.visits.of(request.session_hash), lambda visit: visit.open_session.undo())

    def redo(self, request: gr.Request) -> Shown:
        return self._moved(self.visits.of(request.session_hash), lambda visit: visit.open_session.redo())

    def go_to(self, chosen: gr.SelectData, request: gr.Request) -> Shown:
        visit = self.visits.of(request.session_hash)
        if chosen.index == visit.open_session.current:
            return self._as_it_is()
        return self._moved(visit, lambda visit: visit.open_session.go_to(chosen.index))

    def save_session(self, request: gr.Request) -> Shown:
        return {self.parts.delivery: results.session_zip(self.visits.of(request.session_hash))}

    def leave(self, request: gr.Request) -> None:
        self.visits.leave(request.session_hash)

    # --- what is shown after it ---

    def _as_it_is(self) -> Shown:
        """Nothing changes. An empty answer would empty the page."""
        return {self.parts.status: gr.skip()}

    def _moved(self, visit: Visit, move: Callable[[Visit], Any]) -> Shown:
        move(visit)
        visit.clear_mask()
        return self._picture(visit)

    def _picture(self, visit: Visit) -> Shown:
        """The canvas with the current picture, and the session around it."""
        session = visit.open_session
        undo, redo = session.can_undo, session.can_redo
        return {
            self.parts.canvas: layout.canvas_value(visit, picture=True),
            self.parts.history: gr.Gallery(results.history(visit), selected_index=session.current),
            self.parts.session: gr.Column(visible=True),
            self.parts.undo: gr.Button(interactive=undo),
            self.parts.redo: gr.Button(interactive=redo),
        }

    def _running(self, running: bool) -> Shown:
        return {
            self.parts.edit: gr.Button(interactive=not running),
            self.parts.cancel: gr.Button(interactive=running),
        }

    def _made(self, visit: Visit, edit: Edit) -> Shown:
        result = edit.result
        said = f"Done in {sum(result.seconds.values()):.1f} s, seed {result.options.seed}."
        return {
            self.parts.status: layout.status(said),
            self.parts.results: gr.Column(visible=True),
            self.parts.gallery: gr.Gallery(results.gallery(edit), selected_index=0),
            self.parts.view: layout.CLOSE,
            **self._chosen(visit, layout.CLOSE),
        }

    def _chosen(self, visit: Visit, view: str) -> Shown:
        return {
            self.parts.comparison: results.comparison(visit, whole=view == layout.WHOLE),
            self.parts.details: results.details(visit.last_edit, visit.chosen),
        }


def painting(visit: Visit, sent: str) -> canvas.Painting:
    """What was on the canvas. Raises InvalidInput before there is a photograph."""
    return canvas.read_painting(sent, visit.open_session.photograph.size)


def taken(file: str) -> bytes:
    """An uploaded file's bytes; the file itself is removed at once."""
    path = Path(file)
    try:
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)
