// The moving timeline: a lane per worker, an item per bar, predicted beside measured, and the threshold below.
import { prefersStill } from "../shared/dom.js";
import { colours } from "./colours.js";
import { drawCounters } from "./counters.js";
import { measuredMs, ratio } from "./tick_store.js";

const LANE = 82, BAR = 48, BASE = 69; // px: a lane, its tallest bar, and where bars stand in it
const LEAST_BAR = 9;
const COUNTERS = 84;
const STILL_EVERY_MS = 1000;

/** Draws a TickStore to a canvas, for as long as it is started. `chosen` hears of items. */
export class Timeline {
  spanMs = 5000;
  domain = "";
  paused = false;

  constructor(box, store, clock, chosen) {
    this.box = box;
    this.canvas = box.querySelector("canvas");
    this.quiet = box.querySelector("#quiet");
    this.context = this.canvas.getContext("2d");
    Object.assign(this, { store, clock, chosen });
    this.drawn = [];
    box.addEventListener("click", (event) => this.#click(event));
    box.addEventListener("mousemove", (event) => this.#hover(event));
    box.addEventListener("mouseleave", () => { this.hovered = undefined; });
    box.addEventListener("keydown", (event) => this.#key(event));
  }

  start() {
    const draw = (nowMs) => {
      this.frame = requestAnimationFrame(draw);
      const pixelMs = this.spanMs / Math.max(1, this.box.clientWidth); // less than that moves nothing
      if (nowMs - this.drawnMs < (prefersStill.matches ? STILL_EVERY_MS : pixelMs)) return;
      this.drawnMs = nowMs;
      this.draw();
    };
    this.drawnMs = 0;
    this.frame ??= requestAnimationFrame(draw);
  }

  stop() {
    cancelAnimationFrame(this.frame);
    this.frame = undefined;
  }

  select(item) {
    this.selected = item;
    this.chosen(item);
  }

  draw() {
    if (!this.paused || this.edgeMs === undefined) this.edgeMs = this.clock.edgeMs();
    const lanes = [...this.store.lanes.values()].filter(({ domain }) => domain === this.domain);
    const [width, height] = [this.box.clientWidth, Math.max(2, lanes.length) * LANE + COUNTERS];
    this.#fit(width, height);
    const { context } = this, paint = colours(context);
    context.clearRect(0, 0, width, height);
    this.drawn = [];
    this.#grid(paint, width, height);
    lanes.forEach((lane, row) => this.#lane(lane, row * LANE, paint, width));
    drawCounters(context, paint, this.store.counters.get(this.domain) ?? [], { top: height - COUNTERS, height: COUNTERS, width, x: (ms) => this.#x(ms, width), edgeMs: this.edgeMs });
    this.quiet.hidden = this.drawn.length > 0;
  }

  #x(ms, width) {
    return width * (1 - (this.edgeMs - ms) / this.spanMs);
  }

  /** As many points as the screen has. */
  #fit(width, height) {
    const scale = devicePixelRatio || 1;
    if (this.canvas.width === Math.round(width * scale) && this.canvas.height === Math.round(height * scale)) return;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.canvas.style.height = `${height}px`;
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
  }

  #grid(paint, width, height) {
    const { context } = this;
    const everyMs = [100, 250, 500, 1000, 2000, 5000, 10_000].find((ms) => this.spanMs / ms <= Math.max(4, width / 90)) ?? 10_000;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "left";
    for (let ms = Math.ceil((this.edgeMs - this.spanMs) / everyMs) * everyMs; ms <= this.edgeMs; ms += everyMs) {
      const x = Math.round(this.#x(ms, width)) + 0.5;
      context.fillStyle = paint.line;
      context.fillRect(x, 0, 1, height);
      context.fillStyle = paint.muted;
      const at = new Date(ms);
      context.fillText(`${String(at.getMinutes()).padStart(2, "0")}:${(at.getSeconds() + (ms % 1000) / 1000).toFixed(everyMs < 1000 ? 2 : 0).padStart(everyMs < 1000 ? 5 : 2, "0")}`, x + 4, height - 5);
    }
  }

  #lane({ kind, worker, sides }, top, paint, width) {
    const { context } = this, seen = sides.filter(({ endMs, startMs }) => endMs > this.edgeMs - this.spanMs && startMs < this.edgeMs);
    const tallest = Math.max(1, ...sides.slice(-400).map(size));
    context.fillStyle = paint.line;
    context.fillRect(0, top + BASE + 0.5, width, 1);
    for (const side of seen) this.#side(side, top, tallest, paint, width);
    context.font = "600 11px system-ui, sans-serif";
    context.textAlign = "left";
    const label = `${kind === "unet" ? "UNet" : "VAE"}  ${worker}`;
    context.fillStyle = paint.sunk;
    context.globalAlpha = 0.8;
    context.fillRect(0, top, context.measureText(label).width + 14, 17);
    context.globalAlpha = 1;
    context.fillStyle = paint.ink;
    context.fillText(label, 7, top + 12);
  }

  #side(side, top, tallest, paint, width) {
    const { context } = this, { item, kind } = side;
    const x = this.#x(side.startMs, width), wide = Math.max(1.5, this.#x(side.endMs, width) - x - 1);
    const tall = Math.max(LEAST_BAR, BAR * size(side) / tallest), y = top + BASE - tall;
    this.drawn.push({ item, side, x, y: top, wide, tall: LANE });
    const lit = item === this.selected || item === this.hovered;
    if (side.waitedMs > 0) {
      const waited = x - this.#x(side.startMs - side.waitedMs, width);
      context.fillStyle = paint.muted;
      context.fillRect(x - waited, top + BASE - 2, waited, 2);
    }
    context.beginPath();
    if (wide < 4) context.rect(x, y, wide, tall);
    else context.roundRect(x, y, wide, tall, 3);
    context.fillStyle = paint[kind];
    context.fill();
    if (kind === "unet") this.#skips(item, x, y, wide, tall, paint);
    else this.#chunks(item, x, y, wide, tall, paint);
    if (lit) {
      context.strokeStyle = paint.ink;
      context.lineWidth = 2;
      context.stroke();
    }
    this.#predicted(item, side, x, top + BASE + 4, width, paint);
    this.#label(side, x, y, wide, tall, paint);
  }

  /** The part of the bar that stands for tasks without guidance. */
  #skips({ plan }, x, y, wide, tall, paint) {
    if (!plan?.skips || !plan.tasks) return;
    const { context } = this;
    context.save();
    context.clip();
    context.fillStyle = paint.hatch;
    context.fillRect(x, y, wide, tall * plan.skips / plan.tasks);
    context.restore();
    context.strokeStyle = paint.unet;
    context.lineWidth = 1;
    context.stroke();
  }

  /** A line between two chunks. */
  #chunks({ plan }, x, y, wide, tall, paint) {
    const units = Math.round((plan?.decodes ?? 0) * (plan?.chunks ?? 1));
    if ((plan?.chunks ?? 1) < 2 || tall / units < 3) return;
    this.context.fillStyle = paint.sunk;
    for (let unit = 1; unit < units; unit++) this.context.fillRect(x, y + tall * unit / units, wide, 1);
  }

  /** Under the first side of an item: how long it was to take, and by how much it took longer. */
  #predicted(item, side, x, y, width, paint) {
    const { plan } = item, first = !item.unet || item.unet === side;
    if (!plan?.predicted_ms || !first) return;
    const over = (ratio(item) ?? 1) > 1.1 ? measuredMs(item) - plan.predicted_ms : 0, perMs = width / this.spanMs;
    this.context.fillStyle = paint.muted;
    this.context.fillRect(x, y, Math.max(1, plan.predicted_ms * perMs - 1), 3);
    this.context.fillStyle = paint.danger;
    if (over) this.context.fillRect(x + plan.predicted_ms * perMs - 1, y, over * perMs, 3);
  }

  #label(side, x, y, wide, tall, paint) {
    const { context } = this, [long, short] = labels(side);
    context.font = "600 11px system-ui, sans-serif";
    const text = [long, short].find((one) => context.measureText(one).width + 8 < wide);
    if (!text || tall < 14) return;
    const skipped = side.kind === "unet" && side.item.plan?.skips;
    const free = skipped ? tall * (1 - side.item.plan.skips / side.item.plan.tasks) : tall;
    if (free < 13) return;
    context.fillStyle = paint["on-strong"];
    context.textAlign = "center";
    context.fillText(text, x + wide / 2, y + tall - free / 2 + 4);
    context.textAlign = "left";
  }

  #at({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect(), x = clientX - box.left, y = clientY - box.top;
    const near = this.drawn.filter((one) => y >= one.y && y < one.y + one.tall && x >= one.x - 3 && x <= one.x + one.wide + 3);
    return near.sort((a, b) => distance(a, x) - distance(b, x))[0]?.item;
  }

  #click(event) {
    const item = this.#at(event);
    if (item) this.select(item);
  }

  #hover(event) {
    this.hovered = this.#at(event);
  }

  #key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!by) return;
    event.preventDefault();
    const items = [...new Set(this.drawn.map(({ item }) => item))].sort((a, b) => a.tick - b.tick || a.place - b.place);
    const at = items.indexOf(this.selected), from = at < 0 ? (by < 0 ? items.length : -1) : at;
    const next = items[Math.max(0, Math.min(items.length - 1, from + by))];
    if (next) this.select(next);
  }
}

/** UNet rows, or decodes, of a side. */
function size({ kind, rows, item }) {
  return kind === "unet" ? rows : item.plan?.decodes || rows;
}

function labels(side) {
  const value = Number(size(side).toFixed(2)), skips = side.item.plan?.skips, chunks = side.item.plan?.chunks;
  if (side.kind === "unet") return [`${value} rows${skips ? `, ${skips} skip` : ""}`, String(value)];
  return [`${value} ${value === 1 ? "decode" : "decodes"}${chunks > 1 ? ` in ${chunks}` : ""}`, String(value)];
}

const distance = ({ x, wide }, at) => Math.max(0, x - at, at - x - wide);
