// One picture, large, with everything that is known of it. Arrow keys go to its neighbours.
import { byId, element } from "../shared/dom.js";
import { facts } from "./card.js";
import { inWords, strip } from "./strip.js";

const dialog = byId("viewer");
let shown, neighbours = () => [], reuse = () => {};

/** `pictures`: all that can be gone through, in order; `reused`: hears which settings to use again. */
export function prepareViewer(pictures, reused) {
  [neighbours, reuse] = [pictures, reused];
}

export function view(picture) {
  shown = picture;
  const { card, image, total, skipped = [], name } = picture;
  dialog.replaceChildren(element("div", { className: "viewing" }, element("img", { src: image.src, alt: image.alt }), element("div", {},
    element("h2", { id: "viewer-title" }, card.asked.prompt),
    strip(total || 1, total || 1, skipped),
    element("p", { className: "legend" }, skipped.length ? element("i", { "aria-hidden": "true" }) : null, inWords(total, total, skipped)),
    element("dl", {}, known(picture).map(([term, value]) => [element("dt", {}, term), element("dd", {}, value)])),
    element("div", { className: "actions" },
      element("button", { type: "button", onclick: () => { dialog.close(); reuse(card.settingsOf(picture)); } }, "Use these settings"),
      element("a", { className: "button", href: image.src, download: name }, "Save"),
      element("button", { type: "button", className: "quiet", onclick: () => dialog.close() }, "Close")),
  )));
  if (!dialog.open) dialog.showModal();
}

function known({ card, seed, width, height }) {
  const { timings } = card.job, spent = timings && Object.entries(timings).map(([stage, seconds]) => `${stage.replace("_s", "")} ${seconds.toFixed(2)} s`);
  return [["Seed", seed], ["Size", `${width} × ${height}`], ["Settings", facts(card.asked)], ...(spent ? [["Time", spent.join(", ")]] : []), ["Job", card.job.job_id]];
}

dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => shown?.frame.focus());
dialog.addEventListener("keydown", ({ key }) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[key];
  const all = neighbours(), next = by && all[all.indexOf(shown) + by];
  if (next) view(next);
});
