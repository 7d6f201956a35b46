// The canvas: a photograph, a mask and colours to paint, all at one size, under a view that zooms and moves.
// Runs as the js_on_load of a gr.HTML: `element`, `props` and `watch` are given. The server sets the value, a
// JSON text (see `layout.canvas_value`); `window.bldCanvas.painting()` is what goes back.

const TINT = "#ff2d78";
const KEPT = 8; // undo: so many times the picture's area
const HINTS = {
  brush: "Paint what shall change.",
  rectangle: "Drag a rectangle over what shall change.",
  eraser: "Take mask and colours away.",
  colour: "Paint in colour what shall be there; set Strength below 1 to keep its shape.",
  move: "Drag to move the view.",
};

const $ = (selector) => element.querySelector(selector);
const stage = $(".bld-stage"), view = $("canvas"), hint = $(".bld-hint");
const size = $(".bld-size input"), picker = $("input[type=color]");
const context = view.getContext("2d");

let photo = null, width = 0, height = 0, told = "", base = 0;
let mask = null, colours = null; // canvases, width x height
let tool = "brush", space = false, fitted = true, zoom = 1, left = 0, top_ = 0;
let cursor = null, stroke = null, corner = null, pinch = null, pan = null;
let done = [], undone = [], scheduled = false;
const pointers = new Map();

// --- layers and their history ---

function layer(source) {
  const made = document.createElement("canvas");
  [made.width, made.height] = [width, height];
  if (source) made.getContext("2d").drawImage(source, 0, 0);
  return made;
}

const pixels = (source, [x, y, w, h]) =>
  source.getContext("2d", { willReadFrequently: true }).getImageData(x, y, w, h);

function snapshot() {
  return { mask: layer(mask), colours: layer(colours), base };
}

// Remember what `before` had within a box, and what is there now.
function remember(before, box) {
  const [x0, y0] = [Math.max(0, Math.floor(box[0])), Math.max(0, Math.floor(box[1]))];
  const [x1, y1] = [Math.min(width, Math.ceil(box[2])), Math.min(height, Math.ceil(box[3]))];
  if (x1 <= x0 || y1 <= y0) return;
  const area = [x0, y0, x1 - x0, y1 - y0];
  const state = (from, number) => ({ mask: pixels(from.mask, area), colours: pixels(from.colours, area), base: number });
  done.push({ area, before: state(before, before.base), after: state({ mask, colours }, base) });
  undone = [];
  let total = 0;
  for (const step of done) total += step.area[2] * step.area[3];
  while (done.length > 1 && total > KEPT * width * height) {
    const oldest = done.shift();
    total -= oldest.area[2] * oldest.area[3];
  }
}

function restore(from, to, key) {
  const step = from.pop();
  if (!step) return;
  mask.getContext("2d").putImageData(step[key].mask, step.area[0], step.area[1]);
  colours.getContext("2d").putImageData(step[key].colours, step.area[0], step.area[1]);
  base = step[key].base;
  to.push(step);
  draw();
}

function whole(change) {
  const before = snapshot();
  change();
  remember(before, [0, 0, width, height]);
  draw();
}

function clear() {
  for (const one of [mask, colours]) one.getContext("2d").clearRect(0, 0, width, height);
}

// --- painting ---

const radius = () => Math.max(0.5, (Number(size.value) / 100) ** 2 * Math.max(width, height) / 4);

function line(target, from, to, style) {
  const paint = target.getContext("2d");
  paint.globalCompositeOperation = style ? "source-over" : "destination-out";
  paint.strokeStyle = paint.fillStyle = style || "#000";
  paint.lineWidth = 2 * radius();
  paint.lineCap = paint.lineJoin = "round";
  paint.beginPath();
  if (from[0] === to[0] && from[1] === to[1]) {
    paint.arc(to[0], to[1], radius(), 0, 2 * Math.PI);
    paint.fill();
  } else {
    paint.moveTo(...from);
    paint.lineTo(...to);
    paint.stroke();
  }
  paint.globalCompositeOperation = "source-over";
}

function begin(at) {
  stroke = { before: snapshot(), from: at, at, box: [Infinity, Infinity, -Infinity, -Infinity] };
  extend(at);
}

function extend(at) {
  if (tool !== "rectangle") {
    if (tool === "eraser") for (const one of [mask, colours]) line(one, stroke.at, at, null);
    if (tool === "colour") line(colours, stroke.at, at, picker.value);
    if (tool !== "eraser") line(mask, stroke.at, at, TINT);
    const reach = radius() + 2;
    for (const [x, y] of [stroke.at, at]) {
      stroke.box = [Math.min(stroke.box[0], x - reach), Math.min(stroke.box[1], y - reach),
        Math.max(stroke.box[2], x + reach), Math.max(stroke.box[3], y + reach)];
    }
  }
  stroke.at = at;
  draw();
}

function end() {
  if (!stroke) return;
  if (tool === "rectangle") {
    const [x0, y0, x1, y1] = rectangle(stroke.from, stroke.at);
    const paint = mask.getContext("2d");
    paint.fillStyle = TINT;
    paint.fillRect(x0, y0, x1 - x0, y1 - y0);
    stroke.box = [x0, y0, x1, y1];
  }
  remember(stroke.before, stroke.box);
  stroke = null;
  draw();
}

function abandon() {
  if (!stroke) return;
  [mask, colours] = [stroke.before.mask, stroke.before.colours];
  stroke = null;
}

function rectangle(a, b) {
  return [Math.floor(Math.min(a[0], b[0])), Math.floor(Math.min(a[1], b[1])),
    Math.ceil(Math.max(a[0], b[0])), Math.ceil(Math.max(a[1], b[1]))];
}

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

// --- the server ---

const picture = (url) => new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = () => resolve(image);
  image.onerror = () => reject(new Error("a picture that cannot be read"));
  image.src = url;
});

function say() {
  hint.textContent = photo ? HINTS[tool] + " " + told : "";
}

async function load() {
  if (!props.value) return;
  const given = JSON.parse(props.value);
  const [newPhoto, newMask] = await Promise.all([given.photo && picture(given.photo), given.mask && picture(given.mask)]);
  abandon();
  if (newPhoto) {
    [photo, width, height, told] = [newPhoto, given.width, given.height, given.told];
    [done, undone, mask, colours] = [[], [], layer(), layer()];
    stage.style.aspectRatio = width + " / " + height;
    stage.classList.add("bld-full");
    base = given.base;
    if (newMask) mask.getContext("2d").drawImage(newMask, 0, 0);
    requestAnimationFrame(fit);
  } else whole(() => {
    mask.getContext("2d").clearRect(0, 0, width, height);
    mask.getContext("2d").drawImage(newMask, 0, 0);
    const paint = colours.getContext("2d"); // colours lie within the mask
    paint.globalCompositeOperation = "destination-in";
    paint.drawImage(mask, 0, 0);
    paint.globalCompositeOperation = "source-over";
    base = given.base;
  });
  stage.dataset.base = String(base);
  say();
}

let loading = Promise.resolve();
watch("value", () => { loading = loading.then(load).catch((error) => { hint.textContent = error.message; }); });
new ResizeObserver(() => { if (photo && fitted) fit(); else draw(); }).observe(stage);

window.bldCanvas = {
  painting: () => JSON.stringify(photo
    ? { base, mask: mask.toDataURL("image/png"), colours: colours.toDataURL("image/png") }
    : { base: 0, mask: "", colours: "" }),
};
choose("brush");
