// The canvas, first part: the photograph, the mask and the colours, all of one size, and how they are painted.
// layers.js, gestures.js and exchange.js run one after the other as the js_on_load of a gr.HTML: `element`, `props`
// and `watch` are given.

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
