// The page's colours, for a canvas.

const NAMES = ["card", "sunk", "ink", "muted", "line", "unet", "unet-soft", "vae", "vae-soft", "danger", "on-strong"];
let known;

/** Colours by name, as the page shows them just now. `hatch`: a pattern, as the page's `--hatch`. */
export function colours(context) {
  known ??= read(context);
  return known;
}

function read(context) {
  const probe = document.body.appendChild(document.createElement("i"));
  const found = {};
  for (const name of NAMES) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  found.hatch = hatch(context, found);
  return found;
}

function hatch(context, { unet, "unet-soft": soft }) {
  const tile = new OffscreenCanvas(6, 6), drawing = tile.getContext("2d");
  drawing.fillStyle = soft;
  drawing.fillRect(0, 0, 6, 6);
  drawing.strokeStyle = unet;
  drawing.lineWidth = 1.7;
  for (const by of [-6, 0, 6]) {
    drawing.moveTo(by, 6);
    drawing.lineTo(by + 6, 0);
  }
  drawing.stroke();
  return context.createPattern(tile, "repeat");
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { known = undefined; });
