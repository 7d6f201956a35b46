// The canvas, second part: the view of it, and what pointers, keys and dropped files do.

// --- the view ---

const middle = () => [stage.clientWidth / 2, stage.clientHeight / 2];
const place = (event) => {
  const box = stage.getBoundingClientRect();
  return [event.clientX - box.left - stage.clientLeft, event.clientY - box.top - stage.clientTop];
};
const toPhoto = ([x, y]) => [(x - left) / zoom, (y - top_) / zoom];

function fit() {
  zoom = Math.min(stage.clientWidth / width, stage.clientHeight / height);
  [left, top_] = [(stage.clientWidth - width * zoom) / 2, (stage.clientHeight - height * zoom) / 2];
  fitted = true;
  draw();
}

function zoomBy(factor, [x, y]) {
  const lowest = Math.min(stage.clientWidth / width, stage.clientHeight / height) / 2;
  const next = Math.min(32, Math.max(lowest, zoom * factor));
  [left, top_] = [x - (x - left) * next / zoom, y - (y - top_) * next / zoom];
  zoom = next;
  fitted = false;
  draw();
}

function draw() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(stage.clientWidth * ratio), Math.round(stage.clientHeight * ratio)];
    if (view.width !== w || view.height !== h) [view.width, view.height] = [w, h];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, w, h);
    if (!photo) return;
    context.setTransform(zoom * ratio, 0, 0, zoom * ratio, left * ratio, top_ * ratio);
    context.imageSmoothingEnabled = zoom < 3;
    context.drawImage(photo, 0, 0, width, height);
    context.globalAlpha = 0.5;
    context.drawImage(mask, 0, 0);
    context.globalAlpha = 1;
    context.drawImage(colours, 0, 0);
    drawTool();
  });
}

function drawTool() {
  const from = stroke ? stroke.from : corner, at = stroke ? stroke.at : cursor;
  if (!at || tool === "move") return;
  context.beginPath();
  if (tool !== "rectangle") context.arc(at[0], at[1], radius(), 0, 2 * Math.PI);
  else if (from) {
    const [x0, y0, x1, y1] = rectangle(from, at);
    context.rect(x0, y0, x1 - x0, y1 - y0);
  } else {
    context.moveTo(at[0] - 8 / zoom, at[1]), context.lineTo(at[0] + 8 / zoom, at[1]);
    context.moveTo(at[0], at[1] - 8 / zoom), context.lineTo(at[0], at[1] + 8 / zoom);
  }
  for (const [style, thick] of [["#000", 3], ["#fff", 1.5]]) {
    [context.strokeStyle, context.lineWidth] = [style, thick / zoom];
    context.stroke();
  }
}

// --- pointers: one paints, two zoom and move ---

const spread = () => {
  const [[ax, ay], [bx, by]] = [...pointers.values()];
  return { apart: Math.hypot(ax - bx, ay - by) || 1, centre: [(ax + bx) / 2, (ay + by) / 2] };
};

stage.addEventListener("pointerdown", (event) => {
  if (!photo) return;
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, place(event));
  if (pointers.size === 2) {
    abandon();
    pan = null;
    pinch = spread();
  } else if (pointers.size === 1) {
    if (tool === "move" || space || event.button === 1) pan = place(event);
    else if (event.button === 0) begin(toPhoto(place(event)));
  }
  event.preventDefault();
  stage.focus({ preventScroll: true });
});

stage.addEventListener("pointermove", (event) => {
  if (!photo) return;
  const at = place(event);
  cursor = toPhoto(at);
  if (pointers.has(event.pointerId)) pointers.set(event.pointerId, at);
  if (pinch && pointers.size === 2) {
    const now = spread();
    [left, top_] = [left + now.centre[0] - pinch.centre[0], top_ + now.centre[1] - pinch.centre[1]];
    zoomBy(now.apart / pinch.apart, now.centre);
    pinch = now;
  } else if (pan) {
    [left, top_] = [left + at[0] - pan[0], top_ + at[1] - pan[1]];
    pan = at;
    fitted = false;
  } else if (stroke) {
    const between = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const one of between.length ? between : [event]) extend(toPhoto(place(one)));
  }
  draw();
});

for (const name of ["pointerup", "pointercancel"]) {
  stage.addEventListener(name, (event) => {
    pointers.delete(event.pointerId);
    if (pointers.size < 2) pinch = null;
    pan = null;
    if (name === "pointerup") end();
    else abandon(), draw();
  });
}
stage.addEventListener("pointerleave", () => { cursor = null; draw(); });
stage.addEventListener("wheel", (event) => {
  if (!photo || !event.ctrlKey) return; // a plain wheel scrolls the page
  event.preventDefault();
  zoomBy(Math.exp(-event.deltaY / 300), place(event));
}, { passive: false });

// --- keys ---

function choose(name) {
  [tool, corner] = [name, null];
  for (const button of element.querySelectorAll("[data-tool]"))
    button.setAttribute("aria-pressed", String(button.dataset.tool === name));
  stage.dataset.tool = name;
  say();
  draw();
}

function press() { // Enter: a dab, or a corner of a rectangle
  cursor = cursor || toPhoto(middle());
  if (tool === "move") return;
  if (tool !== "rectangle") {
    begin(cursor);
    end();
  } else if (!corner) corner = cursor;
  else {
    begin(corner);
    stroke.at = cursor;
    corner = null;
    end();
  }
  draw();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const TOOL_KEYS = { b: "brush", r: "rectangle", e: "eraser", c: "colour", m: "move" };
const DO = {
  undo: () => restore(done, undone, "before"),
  redo: () => restore(undone, done, "after"),
  clear: () => whole(clear),
  out: () => zoomBy(1 / 1.4, middle()),
  in: () => zoomBy(1.4, middle()),
  fit,
};

function arrow([x, y], fine) {
  const far = fine ? 1 : Math.max(4, radius());
  if (tool === "move") {
    [left, top_, fitted] = [left - x * 40, top_ - y * 40, false];
  } else {
    const [cx, cy] = cursor || toPhoto(middle());
    cursor = [Math.min(width, Math.max(0, cx + x * far)), Math.min(height, Math.max(0, cy + y * far))];
  }
  draw();
}

stage.addEventListener("keydown", (event) => {
  if (!photo) {
    if (event.key === "Enter" || event.key === " ") ask(), event.preventDefault();
    return;
  }
  const key = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey;
  if (command && (key === "z" || key === "y")) DO[key === "y" || event.shiftKey ? "redo" : "undo"]();
  else if (command || event.altKey) return;
  else if (ARROWS[event.key]) arrow(ARROWS[event.key], event.shiftKey);
  else if (event.key === "Enter") press();
  else if (event.key === " ") space = true;
  else if (TOOL_KEYS[key]) choose(TOOL_KEYS[key]);
  else if (key === "[" || key === "]") {
    size.value = String(Number(size.value) + (key === "]" ? 5 : -5));
    draw();
  } else if ("+=".includes(key)) DO.in();
  else if (key === "-") DO.out();
  else if (key === "0") fit();
  else return;
  event.preventDefault();
});
stage.addEventListener("keyup", (event) => { if (event.key === " ") space = false; });
stage.addEventListener("blur", () => { space = false; });

for (const button of element.querySelectorAll("button"))
  button.addEventListener("click", () => {
    if (button.dataset.tool) choose(button.dataset.tool);
    else if (photo) DO[button.dataset.do]();
  });
picker.addEventListener("input", () => choose("colour"));
size.addEventListener("input", draw);

// --- photographs from the page: chosen, dropped or pasted ---

const chooser = () => document.querySelector("#bld-photo input[type=file], input#bld-photo, #bld-photo + input[type=file]");
function ask() {
  const button = document.querySelector("button#bld-photo, #bld-photo button");
  if (button) button.click();
}
function give(files) {
  const input = chooser();
  if (!input || !files.length) return;
  const transfer = new DataTransfer();
  transfer.items.add(files[0]);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}
stage.addEventListener("click", () => { if (!photo) ask(); });
for (const name of ["dragenter", "dragover", "dragleave", "drop"])
  stage.addEventListener(name, (event) => {
    event.preventDefault();
    stage.classList.toggle("bld-over", name === "dragenter" || name === "dragover");
    if (name === "drop") give([...event.dataTransfer.files]);
  });
document.addEventListener("paste", (event) => {
  if (!element.isConnected || event.target.closest("input, textarea")) return;
  give([...event.clipboardData.files].filter((file) => file.type.startsWith("image/")));
});
