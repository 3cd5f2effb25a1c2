// The page to draw with: the form asks, the gallery shows.
import { announce, byId, element } from "../shared/dom.js";
import { inWords } from "../shared/errors.js";
import { jsonOf } from "../shared/events.js";
import { keepKey } from "../shared/key.js";
import { Card } from "./card.js";
import { asked, complain, forgive, offer, write } from "./form.js";
import { draw } from "./job.js";
import { prepareViewer, view } from "./viewer.js";

const IDEAS = ["a slice of pizza", "a cup of coffee", "a red car", "a cat"];
const MODELS_EVERY_MS = 15_000;
const cards = [];

async function start(settings) {
  const hangUp = new AbortController();
  const card = new Card(settings, { cancel: () => hangUp.abort(), again: () => start(settings), reuse: useAgain, view });
  cards.unshift(card);
  byId("empty").hidden = true;
  byId("jobs").prepend(card.element);
  try {
    await draw(settings, (name, data) => card.told(name, data), hangUp.signal);
  } catch (error) {
    card.failed(error);
    if (error.code === "invalid_api_key") askForKey();
    else if (error.param) complain(error.param, inWords(error));
  }
}

function useAgain(settings) {
  write(settings);
  byId("prompt").focus();
  announce("The settings are in the form.");
}

function askForKey() {
  byId("key-field").hidden = false;
  byId("settings").open = true;
  byId("key").focus();
}

async function followModels() {
  try {
    offer((await jsonOf("v1/models")).data);
    byId("draw").removeAttribute("aria-describedby");
  } catch (error) {
    if (error.code === "invalid_api_key") askForKey();
    else announce(inWords(error));
  }
  setTimeout(followModels, byId("model").value ? MODELS_EVERY_MS : 1000);
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  forgive();
  const settings = asked();
  if (!settings.prompt) return void complain("prompt", "Say what to draw.");
  start(settings);
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});
byId("key").addEventListener("change", ({ target }) => { keepKey(target.value.trim()); followModels(); });
byId("ideas").append(...IDEAS.map((idea) => element("button", { type: "button", onclick: () => { byId("prompt").value = idea; byId("form").requestSubmit(); } }, idea)));
byId("settings").open = matchMedia("(min-width: 900px)").matches;
prepareViewer(() => cards.flatMap(({ pictures }) => pictures.filter(({ seed }) => seed)), useAgain);
followModels();
