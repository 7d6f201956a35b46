"""The page: what stands where. What happens on it is in `events`."""

import html
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from bld.apps.studio import canvas, controls
from bld.apps.studio.edits import STAGES, Working
from bld.apps.studio.visit import Visit

HERE = Path(__file__).parent
SCRIPTS = ("layers.js", "gestures.js", "exchange.js")  # together what the canvas does
CSS = HERE / "studio.css"
REACH = 512  # px, most that a mask is grown, shrunk or feathered at once
WHOLE, CLOSE = "whole picture", "close up"

TITLE = "bld studio"
INTRO = "Open a photograph, paint what shall change, say what shall be there."


def style() -> dict[str, Any]:
    """How the page looks: quiet colours, and fonts that every system has, so that nothing is fetched."""
    fonts = [gr.themes.Font(name) for name in ("system-ui", "sans-serif")]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
    theme = gr.themes.Base(
        primary_hue="teal",
        neutral_hue="zinc",
        font=fonts,
        font_mono=mono,
        radius_size="md",
        spacing_size="sm",
    ).set(
        # gradio's own greys for help texts are too faint to read
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
    )
    return {"theme": theme, "css": CSS.read_text(encoding="utf-8")}


def page() -> tuple[Any, SimpleNamespace]:
    """The page and its components by name."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        parts = SimpleNamespace()
        gr.HTML(f"<h1>{TITLE}</h1><p>{INTRO}</p>", elem_id="bld-title")
        with gr.Row(equal_height=False, elem_id="bld-desk"):
            with gr.Column(scale=3, min_width=340):
                _canvas(parts)
                _session(parts)
            with gr.Column(scale=2, min_width=300):
                _request(parts)
        _results(parts)
        parts.delivery = gr.File(visible=False)
    return blocks, parts


def _canvas(parts: SimpleNamespace) -> None:
    parts.canvas = gr.HTML(
        value="",
        html_template=(HERE / "canvas.html").read_text(encoding="utf-8"),
        js_on_load="\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        apply_default_css=False,
        elem_id="bld-canvas",
    )
    with gr.Row(elem_classes="bld-bar"):
        parts.photo = gr.UploadButton(
            "Open a photograph", file_types=["image"], size="sm", elem_id="bld-photo"
        )
        parts.invert = gr.Button("Invert mask", size="sm", elem_id="bld-invert")
        parts.grow = gr.Button("Grow", size="sm", elem_id="bld-grow")
        parts.shrink_mask = gr.Button("Shrink", size="sm", elem_id="bld-shrink-mask")
        parts.feather_mask = gr.Button("Feather", size="sm", elem_id="bld-feather-mask")
        parts.amount = gr.Number(
            8, label="Pixels to grow, shrink or feather by", show_label=False, container=False, minimum=1,
            maximum=REACH, precision=0, elem_id="bld-amount", min_width=70,
        )  # fmt: skip
    with gr.Accordion("Mask from a file", open=False):
        parts.upload = {name: controls.component(name) for name in controls.UPLOAD}
        parts.mask_file = gr.UploadButton("Open a mask", file_types=["image"], size="sm", elem_id="bld-mask")


def _request(parts: SimpleNamespace) -> None:
    parts.options = {}
    parts.prompt = gr.Textbox(
        label="Prompt", info="what to draw inside the mask", lines=1, max_lines=4, elem_id="bld-prompt"
    )
    parts.options["negative_prompt"] = controls.component("negative_prompt")
    with gr.Row():
        parts.edit = gr.Button("Edit", variant="primary", elem_id="bld-edit")
        parts.cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="bld-cancel")
    parts.status = gr.HTML("", elem_id="bld-status")
    parts.preview = gr.HTML("", elem_id="bld-preview")
    with gr.Row():
        for name in ("candidates", "seed"):
            parts.options[name] = controls.component(name)
    parts.options["strength"] = controls.component("strength")
    parts.preset = controls.preset()
    for name in ("reconstruct", "shrink"):
        parts.options[name] = controls.component(name)
    with gr.Accordion("Advanced", open=False, elem_id="bld-advanced"):
        for name in controls.ADVANCED:
            parts.options[name] = controls.component(name)


def _results(parts: SimpleNamespace) -> None:
    with gr.Column(visible=False, elem_id="bld-results") as parts.results, gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=340):
            parts.view = gr.Radio([CLOSE, WHOLE], value=CLOSE, show_label=False, container=False)
            parts.comparison = gr.ImageSlider(
                label="Before and after", interactive=False, elem_id="bld-comparison", buttons=["fullscreen"]
            )
        with gr.Column(scale=2, min_width=300):
            parts.gallery = gr.Gallery(
                label="Candidates, best first", columns=2, allow_preview=False, buttons=[],
                interactive=False, object_fit="contain", elem_id="bld-gallery", height="auto",
            )  # fmt: skip
            parts.details = gr.HTML("", elem_id="bld-facts")
            with gr.Row(elem_classes="bld-bar"):
                parts.use = gr.Button("Use as next input", variant="primary", size="sm", elem_id="bld-use")
                parts.repeat = gr.Button("Repeat with this seed", size="sm", elem_id="bld-repeat")
                parts.save = gr.Button("Download PNG", size="sm", elem_id="bld-save")


def _session(parts: SimpleNamespace) -> None:
    with gr.Column(visible=False, elem_id="bld-session") as parts.session:
        parts.history = gr.Gallery(
            label="Session", columns=8, fit_columns=False, allow_preview=False, buttons=[],
            interactive=False, object_fit="cover", elem_id="bld-history", height="auto",
        )  # fmt: skip
        with gr.Row(elem_classes="bld-bar"):
            parts.undo = gr.Button("Undo", size="sm", interactive=False, elem_id="bld-undo")
            parts.redo = gr.Button("Redo", size="sm", interactive=False, elem_id="bld-redo")
            parts.zip = gr.Button("Download the session", size="sm", elem_id="bld-zip")


def status(working: Working | str) -> str:
    """How far an edit is, as HTML; or a line of text."""
    if isinstance(working, str):
        return f"<p role='status'>{html.escape(working)}</p>" if working else ""
    stage = STAGES.get(working.stage, working.stage.capitalize())
    count = f", step {working.done} of {working.total}" if working.total > 1 else ""
    left = "" if working.seconds_left is None else f", about {working.seconds_left:.0f} s left"
    return (
        f"<p role='status'>{html.escape(stage + count + left)}</p>"
        f"<progress value='{working.done}' max='{working.total}' aria-label='Progress'></progress>"
    )


def preview(url: str | None) -> str:
    """The predicted picture, as HTML."""
    return f"<img src='{url}' alt='The picture as the model predicts it'>" if url else ""


def canvas_value(visit: Visit, *, picture: bool = False) -> str:
    """What the canvas is given: the latest mask, and the picture if it is another one. See exchange.js."""
    photograph, mask = visit.open_session.photograph, visit.shown_mask()
    (height, width), (rows, columns) = photograph.size, mask.shape
    told = f"{width} x {height} px"
    if (rows, columns) != photograph.size:
        told += f", painted on at {columns} x {rows} and scaled up"
    return json.dumps(
        {
            "base": visit.sent,
            "photo": canvas.data_url(canvas.reduced(photograph, mask.shape)) if picture else "",
            "mask": canvas.mask_url(mask),
            "width": columns,
            "height": rows,
            "told": told,
        }
    )
