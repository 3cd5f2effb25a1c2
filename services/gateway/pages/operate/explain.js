// Why an item was planned so, from the plan's own explanation.
import { element } from "../shared/dom.js";
import { measuredMs, ratio } from "./tick_store.js";

/** What is to be read of an item. `rounds`: by id, as the stream told of them. */
export function explanation(item, rounds) {
  const { plan, part } = item, round = rounds.get(plan?.round);
  return [
    element("h3", {}, title(item)),
    times(item),
    ...[who(part), doing(plan), asked(round), answered(round, part), price(round), ran(item)].filter(Boolean).map((words) => element("p", {}, words)),
    round?.others?.length ? others(round) : null,
  ].filter(Boolean);
}

function title({ tick, place, plan, unet, vae }) {
  const rows = plan?.rows ?? unet?.rows, decodes = plan?.decodes ?? vae?.rows;
  const halves = [rows && count(rows, "UNet row"), decodes && count(decodes, "decode")].filter(Boolean);
  return `Tick ${tick}, item ${place}: ${halves.join(" beside ")}`;
}

/** Predicted and measured, as bars of one scale. */
function times(item) {
  const { plan, unet, vae } = item, measured = measuredMs(item), off = ratio(item);
  const bars = [
    plan?.predicted_ms && ["Predicted", plan.predicted_ms, ""],
    unet && ["UNet side", unet.endMs - unet.startMs, "unet"],
    vae && ["VAE side", vae.endMs - vae.startMs, "vae"],
    unet && vae && ["Both", measured, off > 1.1 ? "over" : ""],
  ].filter(Boolean);
  const most = Math.max(...bars.map(([, ms]) => ms));
  return element("div", { className: "bars" }, bars.map(([name, ms, className]) => {
    const bar = element("i", { className, "aria-hidden": "true" });
    bar.style.width = `${(100 * ms) / most}%`;
    return [element("span", {}, name), bar, element("span", { className: "number" }, `${ms.toFixed(1)} ms`)];
  }));
}

/** "unet-0: 8 step, 2 set aside, 3 decode, busy" in a sentence. */
function who({ why = "" }) {
  const found = /: (\d+) step, (\d+) set aside, (\d+) decode, (busy|at ease)/.exec(why);
  if (!found) return why && `${why}.`;
  const [, step, aside, decode, load] = found;
  const busy = load === "busy" ? "Others wait" : "Nobody else waits";
  return `${count(step, "task")} made a step in this tick, ${aside} were set aside, ${count(decode, "decode")} were served. ${busy}${load === "busy" ? ", so skips are cheap" : ", so there is no need to skip guidance"}.`;
}

function doing(plan) {
  if (!plan) return "This leader did not plan it: an earlier one did.";
  const { tasks, skips, rows, chunks, decodes, unet_threads: unet, vae_threads: vae } = plan;
  const steps = tasks && `${count(tasks, "task")} step${skips ? `, ${skips} of them without guidance` : ""}: ${count(rows, "row")}`;
  const decoded = decodes && `${count(decodes, "decode")}${chunks > 1 ? `, each cut into ${chunks} chunks` : ""}`;
  const threads = (unet || vae) && `Threads: ${[unet && `${unet} for the UNet`, vae && `${vae} for the VAE`].filter(Boolean).join(", ")}`;
  return `${[steps, decoded].filter(Boolean).join(", beside ")}. ${threads ? `${threads}.` : ""}`;
}

function asked(round) {
  if (!round) return "The programme was not asked: nothing was measured for these pictures, or the policy plans without it.";
  const { unet = 0, vae = 0, skips = 0, one_row: oneRow = 0 } = round;
  const extras = [skips && `up to ${skips} may skip guidance`, oneRow && `${oneRow} take one row anyway`].filter(Boolean);
  return `The planner was asked for ${count(unet, "step")} and ${count(vae, "decode")} in one round${extras.length ? ` (${extras.join("; ")})` : ""}.`;
}

function answered(round) {
  if (!round) return "";
  if (!round.planned) return "It did not know the answer yet. So the decodes went first, then the steps, and the round was solved meanwhile for the next time.";
  const { planned, fastest_ms: fastest, threshold } = round, allowed = fastest / threshold;
  const within = planned.feasible ? "within" : "more than";
  const decodes = planned.mean_decode_ms ? `, and decodes end after ${planned.mean_decode_ms.toFixed(1)} ms on average` : "";
  return `Without skips the fastest round takes ${fastest.toFixed(1)} ms. The threshold of ${threshold.toFixed(2)} allows ${allowed.toFixed(1)} ms. The round takes ${planned.total_ms.toFixed(1)} ms, ${within} that, in ${count(planned.items, "item")}${decodes}.`;
}

function price(round) {
  const skipped = (round?.planned?.one_row ?? 0) - (round?.one_row ?? 0);
  return skipped > 0 && `${count(skipped, "skip")} at ${(round.skip_price_ms ?? 0).toFixed(0)} ms each were worth it.`;
}

function ran(item) {
  const { unet, vae, part } = item, off = ratio(item);
  const words = [];
  if (off) words.push(Math.abs(off - 1) < 0.02 ? "It took as long as predicted." : `It took ${Math.round(Math.abs(off - 1) * 100)} % ${off > 1 ? "longer" : "less"} than predicted.`);
  if (!part.in_step) words.push("Both sides ran free, neither waiting for the other.");
  for (const side of [unet, vae]) {
    if (!side) continue;
    const name = side === unet ? "UNet" : "VAE";
    if (side.waitedMs > 0.05) words.push(`The ${name} side waited ${side.waitedMs.toFixed(1)} ms for the other.`);
    if (side.stale) words.push(`${count(side.stale, "entry", "entries")} of the plan no longer fitted.`);
    if (side.halved) words.push(`Memory did not suffice for ${side.halved} at once, so it ran in halves.`);
  }
  return words.join(" ");
}

/** The planned round beside simpler ones, and why it was preferred. */
function others({ planned, others: simpler, fastest_ms: fastest, threshold }) {
  const rows = [planned, ...simpler].map((one) => element("tr", { className: one === planned ? "chosen" : "" },
    element("th", { scope: "row" }, one.name), ...[one.total_ms, one.mean_decode_ms ?? 0].map((ms) => element("td", { className: "number" }, ms.toFixed(1))),
    element("td", {}, one === planned ? "chosen" : against(planned, one, fastest / threshold))));
  const heading = ["round", "ms", "mean decode ms", "why not"].map((name, at) => element("th", { scope: "col", className: at === 1 || at === 2 ? "number" : "" }, name));
  return element("div", { className: "scrolled", tabIndex: 0, role: "region", "aria-label": "Rounds compared" }, element("table", {}, element("thead", {}, element("tr", {}, heading)), element("tbody", {}, rows)));
}

function against(planned, other, allowedMs) {
  if (!other.feasible) return `${(other.total_ms - allowedMs).toFixed(1)} ms slower than allowed`;
  const worse = (other.objective_ms ?? 0) - (planned.objective_ms ?? 0);
  return worse > 0.0005 ? `objective ${worse.toFixed(1)} ms worse` : "as good, with more skips, time or items";
}

function count(value, one, many = `${one}s`) {
  const number = Number(Number(value).toFixed(2));
  return `${number} ${number === 1 ? one : many}`;
}
