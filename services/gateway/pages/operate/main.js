// The page to watch it run.
import { byId, element } from "../shared/dom.js";
import { ServerClock } from "./clock.js";
import { explanation } from "./explain.js";
import { drawPool } from "./pool.js";
import { Rates } from "./rates.js";
import { follow } from "./streams.js";
import { TickStore } from "./tick_store.js";
import { drawTiles } from "./tiles.js";
import { Timeline } from "./timeline.js";

const SPANS = [["2 s", 2000], ["5 s", 5000], ["20 s", 20_000], ["60 s", 60_000]];
const HISTORY = 4096; // parts of ticks to begin with
const TILES_EVERY_MS = 1000;

const store = new TickStore(), clock = new ServerClock(), rates = new Rates();
const timeline = new Timeline(byId("timeline"), store, clock, choose);
let begun = 0;

function choose(item) {
  byId("explanation").replaceChildren(...explanation(item, store.rounds));
}

function heardTicks(name, message) {
  if (name === "begun") {
    store.begun();
    begun = 0;
    return;
  }
  const parts = store.take(message);
  begun += 1;
  rates.takeParts(parts);
  rates.takeJobs(message.ended ?? []);
  if (begun > 1 && parts.length) clock.heard(store.newestMs); // the first message is of the past
  offerDomains();
}

function heardStatus(_, status) {
  drawPool(status);
  rates.takeQueue(serverNowMs(), status.queues.reduce((sum, { waiting }) => sum + waiting, 0));
  connection("live", `${status.leader ? "Live" : "Live, but not from the leader"} · pool ${status.pool} · policy ${status.policy}`);
}

function lost(why) {
  connection("lost", why);
}

function connection(className, words) {
  const shown = byId("connection");
  if (shown.textContent !== words) shown.textContent = words;
  shown.className = className;
}

function offerDomains() {
  const domains = [...new Set([...store.lanes.values()].map(({ domain }) => domain))];
  const select = byId("domain");
  if (select.options.length !== domains.length) {
    select.replaceChildren(...domains.map((domain) => element("option", {}, domain)));
    byId("domain-label").hidden = domains.length < 2;
    if (domains.includes(timeline.domain)) select.value = timeline.domain;
  }
  if (!domains.includes(timeline.domain)) timeline.domain = domains[0] ?? "";
}

const serverNowMs = () => clock.edgeMs();

byId("spans").append(...SPANS.map(([name, spanMs]) => element("label", {}, element("input", {
  type: "radio", name: "span", checked: spanMs === timeline.spanMs, onchange: () => { timeline.spanMs = spanMs; timeline.draw(); },
}), name)));
byId("domain").addEventListener("change", ({ target }) => { timeline.domain = target.value; timeline.draw(); });
byId("pause").addEventListener("click", ({ currentTarget: button }) => {
  timeline.paused = !timeline.paused;
  button.setAttribute("aria-pressed", String(timeline.paused));
  button.textContent = timeline.paused ? "Go on" : "Pause";
});
byId("timeline").addEventListener("keydown", ({ key }) => {
  if (key.startsWith("Arrow") && !timeline.paused) byId("pause").click();
});
document.addEventListener("visibilitychange", () => (document.hidden ? timeline.stop() : timeline.start()));

follow(`../api/ticks?last=${HISTORY}`, heardTicks, lost);
follow("../api/status", heardStatus, lost);
drawTiles(rates, serverNowMs());
setInterval(() => document.hidden || drawTiles(rates, serverNowMs()), TILES_EVERY_MS);
timeline.start();
