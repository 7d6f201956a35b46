// The canvas, third part: what it is given and what goes back. The server sets the value, a JSON text (see
// `layout.canvas_value`); `window.bldCanvas.painting()` is what `canvas.read_painting` reads.

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
