// The form: what is asked for, read from its fields and written back to be asked for again.
import { byId, element } from "../shared/dom.js";
import { samplerName } from "../shared/samplers.js";
import { sizesOf, stepsOf } from "./models.js";
import { slider } from "./slider.js";

const prompt = byId("prompt"), negative = byId("negative"), seed = byId("seed"), skip = byId("skip");
const model = byId("model"), size = byId("size"), sampler = byId("sampler");
const width = byId("width"), height = byId("height"), ownSize = byId("own-size");
const steps = slider("steps"), guidance = slider("guidance"), count = slider("count");
count.value = 1;
const OWN = "own";
const FIELDS = {
  prompt: "prompt", negative_prompt: "negative", model: "model", size: "size", n: "count", seed: "seed",
  num_inference_steps: "steps", guidance_scale: "guidance", sampler: "sampler",
};

let models = new Map(), offered = "";
let replayed; // the steps that skip guidance, where a picture is drawn again; else undefined

/** Offer these models, each as /v1/models has it; those that draw just now first. */
export function offer(listed) {
  if (JSON.stringify(listed) === offered) return;
  offered = JSON.stringify(listed);
  const sorted = [...listed].sort((a, b) => b.synerdiff.available - a.synerdiff.available);
  models = new Map(sorted.map(({ id, synerdiff }) => [id, synerdiff]));
  const kept = model.value;
  const label = ({ id, synerdiff }) => (synerdiff.available ? id : `${id} (no workers just now)`);
  model.replaceChildren(...sorted.map((one) => element("option", { value: one.id }, label(one))));
  if (models.has(kept)) model.value = kept;
  else if (models.size) useDefaults();
}

/** What is asked for, as the API calls it. Left out: what the server is to choose. */
export function asked() {
  return {
    prompt: prompt.value.trim(),
    ...(model.value && { model: model.value }),
    size: size.value === OWN ? `${width.value}x${height.value}` : size.value || "auto",
    n: count.value,
    num_inference_steps: steps.value,
    guidance_scale: guidance.value,
    ...(sampler.value && { sampler: sampler.value }),
    ...(seed.value.trim() && { seed: seed.value.trim() }),
    ...(negative.value.trim() && { negative_prompt: negative.value.trim() }),
    ...(replayed ? { skip_cfg: replayed } : !skip.checked && { skip_cfg: false }),
  };
}

/** Ask for this again. */
export function write(settings) {
  prompt.value = settings.prompt;
  if (models.has(settings.model)) {
    model.value = settings.model;
    useDefaults();
  }
  writeSize(settings.size);
  if (settings.sampler) sampler.value = settings.sampler;
  offerSteps();
  steps.value = settings.num_inference_steps;
  guidance.value = settings.guidance_scale;
  count.value = settings.n;
  negative.value = settings.negative_prompt ?? "";
  writeSeed(settings.seed ?? "");
  skip.checked = settings.skip_cfg !== false;
  replay(Array.isArray(settings.skip_cfg) ? settings.skip_cfg : undefined);
  summarise();
}

/** Say at its field what is wrong; true where there is such a field. */
export function complain(param, sentence) {
  const field = byId(FIELDS[param] ?? "");
  if (!field) return false;
  byId("settings").open ||= field !== prompt;
  field.setAttribute("aria-invalid", "true");
  const error = byId(`${field.id}-error`);
  error.textContent = sentence;
  error.hidden = false;
  field.focus();
  return true;
}

/** Take back what was said of fields. */
export function forgive() {
  for (const id of Object.values(FIELDS)) {
    byId(id).removeAttribute("aria-invalid");
    byId(`${id}-error`).hidden = true;
  }
}

function useDefaults() {
  const card = models.get(model.value);
  size.replaceChildren(...sizesOf(card).map(({ value, label }) => element("option", { value }, label)), element("option", { value: OWN }, "Another size …"));
  for (const side of [width, height]) Object.assign(side, { min: card.size_multiple, max: card.max_side, step: card.size_multiple });
  [width.value, height.value] = [card.width, card.height];
  ownSize.hidden = true;
  sampler.replaceChildren(...card.samplers.map(({ name }) => element("option", { value: name }, samplerName(name))));
  sampler.value = card.sampler;
  offerSteps();
  steps.value = card.num_inference_steps;
  guidance.value = Number(card.guidance_scale.toFixed(2));
  summarise();
}

function offerSteps() {
  const card = models.get(model.value);
  if (!card) return;
  const { least, offered } = stepsOf(card, sampler.value);
  steps.bounds(least, offered);
}

function writeSize(value) {
  size.value = value;
  if (size.value === value) return void (ownSize.hidden = true);
  size.value = OWN;
  ownSize.hidden = false;
  [width.value, height.value] = value.split("x");
}

function writeSeed(value) {
  seed.value = value;
  byId("forget-seed").hidden = !value;
}

function replay(skipped) {
  replayed = skipped;
  skip.disabled = Boolean(skipped);
  byId("replay").hidden = !skipped;
  if (skipped) byId("replay").firstElementChild.textContent = `Skips guidance on the same ${skipped.length} steps as that picture.`;
}

function summarise() {
  byId("summary").textContent = `${steps.value} steps, guidance ${guidance.value}, ${size.value === OWN ? "another size" : size.value.replace("x", " × ")}`;
}

model.addEventListener("change", useDefaults);
sampler.addEventListener("change", offerSteps);
size.addEventListener("change", () => { ownSize.hidden = size.value !== OWN; if (!ownSize.hidden) width.focus(); });
seed.addEventListener("input", () => { byId("forget-seed").hidden = !seed.value; });
byId("forget-seed").addEventListener("click", () => { writeSeed(""); seed.focus(); });
byId("replay").querySelector("button").addEventListener("click", () => { replay(undefined); skip.focus(); });
byId("form").addEventListener("input", () => { forgive(); summarise(); });
