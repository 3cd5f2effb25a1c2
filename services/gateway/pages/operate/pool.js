// What the pool holds just now: workers, queues by class, thresholds and their terms.
import { byId, element } from "../shared/dom.js";

const CLASSES = { PRIORITY_HIGH: "High", PRIORITY_NORMAL: "Normal", PRIORITY_LOW: "Low" };

/** Draw a status. */
export function drawPool({ workers, queues, planning, leader }) {
  byId("workers").querySelector(".scrolled").replaceChildren(workers.length ? workerTable(workers) : note("No worker announces itself."));
  byId("queue").lastElementChild.replaceChildren(...(queues.length ? [element("div", { className: "classes" }, queues.map(queue))] : [note("No model was ever asked for.")]));
  const plans = planning.map(plan);
  byId("planning").lastElementChild.replaceChildren(...(plans.length ? plans : [note(leader ? "No worker is attached." : "Only the leader knows.")]));
}

function workerTable(workers) {
  const names = ["Worker", "Kind", "Model", "Slots", "Running", "Rows", "State", "Device", "Execution"];
  const head = element("thead", {}, element("tr", {}, names.map((name) => element("th", { scope: "col" }, name))));
  return element("table", {}, head, element("tbody", {}, workers.map((one) => element("tr", {},
    element("th", { scope: "row" }, one.worker_id), cell(one.kind === "unet" ? "UNet" : "VAE"), cell(one.model), slots(one),
    cell(one.running), cell(one.rows), state(one), cell(device(one)), cell([one.execution, one.memory_format].filter(Boolean).join(", "))))));
}

function slots({ slots: all, slots_used: used }) {
  if (!all) return cell("");
  const shown = Math.min(all, 64), full = Math.round((used / all) * shown);
  const boxes = Array.from({ length: shown }, (_, at) => element("i", { className: at < full ? "used" : "" }));
  return element("td", {}, element("div", { className: "slots", "aria-hidden": "true" }, boxes), `${used} of ${all}`);
}

function state({ suspect, draining, attached }) {
  const words = suspect ? "suspect" : draining ? "draining" : attached ? "attached" : "away";
  return element("td", { className: words }, words);
}

function device({ device: name, domain, mps_thread_percent: share }) {
  return [name || domain, share && `${share} % of its threads`].filter(Boolean).join(", ");
}

function queue({ model, waiting, running, decoding, oldest_age_s: oldest, classes }) {
  const rows = [...classes.map((one) => [CLASSES[one.priority] ?? one.priority, one.waiting, one.oldest_age_s]), ["All", waiting, oldest]];
  return element("div", {},
    element("h3", {}, model),
    element("table", {},
      element("thead", {}, element("tr", {}, ["Class", "Waiting", "Oldest"].map((name, at) => element("th", { scope: "col", className: at ? "number" : "" }, name)))),
      element("tbody", {}, rows.map(([name, jobs, age]) => element("tr", {}, element("th", { scope: "row" }, name), cell(jobs, "number"), cell(jobs ? `${age.toFixed(1)} s` : "", "number"))))),
    element("p", { className: "note" }, `${running} tasks being denoised, ${decoding} past their last step`));
}

function plan({ domain, model, width, height, threshold, knee_rows: knee, profile_digest: digest, profile_origin: origin, profile_drift: drift, profile_corrected: corrected, controller }) {
  const terms = [
    ...(controller ? [["Work that waits", `${controller.backlog_s.toFixed(2)} s`], ["Error", signed(controller.error)], ["Integral", signed(controller.integral)], ["Floor by arrivals", controller.feed_forward.toFixed(2)], ["Arriving", `${controller.arriving_calls_per_s.toFixed(1)} calls/s`]] : []),
    ...(digest ? [["Knee", `${knee} rows`], ["Profile", `${digest.slice(0, 8)}, ${origin}`], ["Drift", `${Math.round(drift * 100)} %${corrected ? ", corrected" : ""}`]] : [["Profile", "none: planned as it comes"]]),
  ];
  return element("div", { className: "domain" },
    element("p", {}, element("strong", {}, model ? `${model}, ${width} × ${height}` : domain), " ", element("span", { className: "note" }, model ? domain : "")),
    threshold ? gauge(threshold, controller?.feed_forward) : note("No threshold is asked for."),
    element("dl", { className: "terms" }, terms.map(([term, value]) => [element("dt", {}, term), element("dd", {}, value)])));
}

/** The threshold from 0 to 1, and a mark at the floor that arrivals put under it. */
function gauge(threshold, floor) {
  const bar = element("i"), value = element("b", {}, threshold.toFixed(2));
  bar.style.width = value.style.left = `${100 * threshold}%`;
  const mark = floor > 0 && element("span", { title: "floor by arrivals" });
  if (mark) mark.style.left = `${100 * Math.min(1, floor)}%`;
  return element("div", { className: "gauge", role: "img", "aria-label": `Threshold ${threshold.toFixed(2)} of 1` }, bar, value, mark);
}

const cell = (value, className = "") => element("td", { className }, value || value === 0 ? String(value) : "");
const note = (words) => element("p", { className: "note" }, words);
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
