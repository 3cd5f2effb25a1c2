// Numbers of the last minutes, each with its curve.
import { byId, element } from "../shared/dom.js";
import { smooth } from "./rates.js";

const SVG = "http://www.w3.org/2000/svg";
const RECENT = 10; // seconds that a number is the mean of

/** Draw every tile as of `nowMs` of the server's clock. */
export function drawTiles(rates, nowMs) {
  rates.forget(nowMs);
  const steps = rates.series(nowMs, (second) => second.steps), skips = rates.series(nowMs, (second) => second.skips);
  const images = rates.series(nowMs, (second) => second.images);
  const waiting = carriedOn(rates.series(nowMs, (second) => second.waiting));
  const share = smooth(steps, RECENT).map((value, at) => (value ? smooth(skips, RECENT)[at] / value : 0));
  const latency = latencies(rates, nowMs, steps.length);
  const [p50, p95] = [0.5, 0.95].map((part) => rates.latencyMs(nowMs, part));
  const unfinished = rates.unfinished();
  show("images", "Pictures", number(mean(images) * 60), "a minute", "vae", smooth(images));
  show("steps", "UNet calls", number(mean(steps)), "a second", "unet", smooth(steps));
  show("skips", "Guidance skipped", `${Math.round(share.at(-1) * 100)} %`, "of calls", "unet", share);
  show("latency", "Latency, P50", seconds(p50), p95 === undefined ? "" : `P95 ${seconds(p95)}`, "good", latency);
  show("waiting", "Waiting", number(waiting.at(-1)), "jobs", "muted", waiting);
  show("failed", "Not finished", number(unfinished), "jobs", "danger", []);
}

/** A count holds until there is another one. */
function carriedOn(series) {
  let last = 0;
  return series.map((value) => (last = value ?? last));
}

const STEP = 5; // seconds between two points of the latency's curve

function latencies(rates, nowMs, seconds) {
  const points = Math.ceil(seconds / STEP);
  return Array.from({ length: points }, (_, at) => rates.latencyMs(nowMs - (points - 1 - at) * STEP * 1000, 0.5, 3 * STEP) ?? 0);
}

function show(id, name, value, unit, tone, series) {
  const tile = byId(`tile-${id}`) ?? byId("tiles").appendChild(made(id, name, tone));
  const [text] = tile.querySelectorAll("dd");
  text.replaceChildren(value, " ", element("small", {}, unit));
  const line = path(series);
  const [under, over] = tile.querySelectorAll("path");
  over.setAttribute("d", line);
  under.setAttribute("d", line && `${line}V1H0Z`);
}

function made(id, name, tone) {
  const curve = document.createElementNS(SVG, "svg");
  for (const [key, value] of [["viewBox", "0 0 1 1"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) curve.setAttribute(key, value);
  for (const className of ["under", ""]) curve.appendChild(document.createElementNS(SVG, "path")).setAttribute("class", className);
  const tile = element("dl", { id: `tile-${id}`, className: "panel tile" }, element("dt", {}, name), element("dd"), curve);
  tile.style.setProperty("--tone", `var(--${tone})`);
  return tile;
}

function path(series) {
  const most = Math.max(...series, 0);
  if (!most) return "";
  return series.map((value, at) => `${at ? "L" : "M"}${(at / (series.length - 1)).toFixed(4)},${(1 - 0.92 * (value / most)).toFixed(3)}`).join("");
}

const mean = (series) => series.slice(-RECENT - 1, -1).reduce((sum, value) => sum + (value ?? 0), 0) / RECENT;
const number = (value) => (value >= 100 ? value.toFixed(0) : String(Number((value || 0).toFixed(1))));
const seconds = (ms) => (ms === undefined ? "–" : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`);
