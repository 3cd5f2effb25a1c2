// A strip of steps: done ones are blue, those that skipped guidance are hatched.
import { element } from "../shared/dom.js";

const MOST_APART = 64; // more steps than this are drawn without a gap between them

/** The strip's element for so many steps. */
export function strip(total, done, skipped = []) {
  const made = element("div", { className: total <= MOST_APART ? "strip apart" : "strip", role: "img", "aria-label": inWords(total, done, skipped) });
  made.append(...runs(total, done, new Set(skipped)).map(({ state, length }) => {
    const run = element("i", { className: state });
    run.style.setProperty("--steps", length);
    return run;
  }));
  return made;
}

function runs(total, done, skipped) {
  const found = [];
  for (let step = 0; step < total; step++) {
    const state = skipped.has(step) ? "skipped" : step < done ? "guided" : "ahead";
    if (found.at(-1)?.state === state) found.at(-1).length += 1;
    else found.push({ state, length: 1 });
  }
  return found;
}

/** "20 steps, guidance skipped on 3 of them: 5, 7 and 9." Steps count from 1. */
export function inWords(total, done, skipped) {
  const progress = done < total ? `${done} of ${total} steps done` : `${total} steps`;
  if (!skipped.length) return `${progress}.`;
  const named = skipped.map((step) => step + 1);
  const list = new Intl.ListFormat("en").format(named.map(String));
  return `${progress}, guidance skipped on ${named.length} of them: ${list}.`;
}
