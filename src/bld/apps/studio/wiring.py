"""Which part of the page calls which handler, with what, and in which line it waits."""

import functools
from types import SimpleNamespace
from typing import Any

from bld.apps.studio import canvas, controls
from bld.apps.studio.events import Studio, told

PAINTED = "(...given) => [window.bldCanvas.painting(), ...given.slice(1)]"
TO_RESULTS = """() => {
  if (document.querySelector("#bld-status").innerText.startsWith("Done"))
    document.querySelector("#bld-results").scrollIntoView({ block: "nearest" });
}"""
DELIVERED = """(file) => {
  if (!file) return;
  const link = document.createElement("a");
  [link.href, link.download] = [file.url, file.orig_name];
  document.body.appendChild(link);
  link.click();
  link.remove();
}"""


def wire(page: Any, parts: SimpleNamespace, studio: Studio) -> None:
    """Connect everything. A handler answers with the parts that it changes, whichever they are."""
    shown = [part for part in vars(parts).values() if not isinstance(part, dict)]
    shown.append(parts.options["seed"])
    connect = functools.partial(_connect, shown)
    _canvas(connect, parts, studio)
    for event in (parts.edit.click, parts.prompt.submit):
        asked = [parts.canvas, parts.prompt, *parts.options.values()]
        line = connect(event, studio.ask, asked, js=PAINTED)
        made = connect(line.success, studio.edit, concurrency_id="model", concurrency_limit=1)
        made.success(None, None, None, js=TO_RESULTS)
    connect(parts.cancel.click, studio.cancel, queue=False)
    connect(parts.gallery.select, studio.choose, [parts.view])
    connect(parts.view.input, studio.look, [parts.view])
    connect(parts.repeat.click, studio.repeat)
    connect(parts.history.select, studio.go_to)
    for button, handler in ((parts.use, studio.use), (parts.undo, studio.undo), (parts.redo, studio.redo)):
        connect(button.click, handler)
    for button, handler in ((parts.save, studio.save), (parts.zip, studio.save_session)):
        connect(button.click, handler).success(None, parts.delivery, None, js=DELIVERED)
    parts.preset.input(
        lambda name: list(controls.preset_values(name).values()),
        parts.preset,
        [parts.options[name] for name in controls.preset_values(controls.DEFAULT)],
        api_visibility="private",
    )
    page.unload(studio.leave)


def _canvas(connect: Any, parts: SimpleNamespace, studio: Studio) -> None:
    connect(parts.photo.upload, studio.open_photograph, [parts.photo])
    how = [parts.upload[name] for name in controls.UPLOAD]
    connect(parts.mask_file.upload, studio.open_mask, [parts.mask_file, *how])
    changes = {
        parts.invert: lambda mask, pixels: canvas.inverted(mask),
        parts.grow: canvas.grown,
        parts.shrink_mask: lambda mask, pixels: canvas.grown(mask, -pixels),
        parts.feather_mask: canvas.feathered,
    }
    for button, change in changes.items():
        connect(button.click, studio.mask_change(change), [parts.canvas, parts.amount], js=PAINTED)


def _connect(shown: list[Any], event: Any, handler: Any, inputs: Any = None, **how: Any) -> Any:
    how = {"concurrency_limit": None, **how}
    return event(told(handler), inputs, shown, show_progress="hidden", api_visibility="private", **how)
