// A job in the gallery: its pictures as they come, how far they are, and what can be done with them.
import { announce, element } from "../shared/dom.js";
import { inWords } from "../shared/errors.js";
import { samplerName } from "../shared/samplers.js";
import { fileName, fileOf } from "./files.js";
import { strip } from "./strip.js";

/** One job. `does`: cancel(), again(), reuse(settings), view(picture). */
export class Card {
  constructor(asked, does) {
    this.asked = asked;
    this.does = does;
    this.job = { timings: undefined, warnings: [], job_id: undefined };
    this.pictures = Array.from({ length: asked.n ?? 1 }, (_, index) => this.#picture(index));
    this.state = element("p", { className: "state" }, "Asking …");
    this.actions = element("div", { className: "actions" }, element("button", { type: "button", onclick: does.cancel }, "Cancel"));
    this.facts = element("p", { className: "facts" }, facts(asked));
    this.element = element(
      "article", { className: `job panel${this.pictures.length > 1 ? " many" : ""}`, "aria-label": asked.prompt, tabIndex: -1 },
      element("div", { className: "pictures" }, this.pictures.map(({ figure }) => figure)),
      element("div", { className: "told" }, element("h3", { title: asked.prompt }, asked.prompt), this.state, this.facts, this.actions),
    );
  }

  /** What the server tells of the job. */
  told(name, data) {
    this.job.job_id = data.job_id;
    if (name === "held") this.#say(data.ahead ? `After your other pictures, ${data.ahead} ahead` : "After your other pictures, next in line");
    if (name === "queued") this.#say(data.position ? `Queued, ${data.position} ahead` : "Queued, next in line");
    if (name === "started") this.#say("Reading the prompt");
    if (name === "progress") this.#progress(data);
    if (name === "image") this.#image(data);
    if (name === "finished") this.#finished(data);
  }

  /** The job came to nothing. */
  failed(error) {
    const cancelled = error.name === "AbortError" || error.code === "job_cancelled";
    this.element.classList.add(cancelled ? "cancelled" : "failed");
    this.#say(cancelled ? "Cancelled" : inWords(error));
    if (!cancelled) this.state.setAttribute("role", "alert");
    this.#offer(element("button", { type: "button", onclick: this.does.again }, "Try again"), this.#reuse(this.asked));
  }

  #picture(index) {
    const image = element("img", { alt: "", hidden: true });
    const frame = element("button", { type: "button", className: "frame waiting", disabled: true, "aria-label": `Picture ${index + 1} is being drawn` }, image);
    const [width, height] = this.asked.size.split("x").map(Number);
    if (width && height) frame.style.setProperty("--shape", `${width} / ${height}`);
    const steps = element("div", {}, strip(this.asked.num_inference_steps || 1, 0));
    return { index, image, frame, steps, figure: element("figure", { className: "picture" }, frame, steps), step: 0, total: 0 };
  }

  #progress({ index, step, num_inference_steps: total, preview_png: preview }) {
    const picture = this.pictures[index];
    if (!picture || picture.seed) return;
    Object.assign(picture, { step, total });
    picture.steps.replaceChildren(strip(total, step));
    if (preview) this.#show(picture, fileOf(preview), "preview");
    this.#say(`Step ${step} of ${total}${this.#which(picture)}`, step % Math.ceil(total / 4) === 0);
    if (step === total) this.#say(`Decoding${this.#which(picture)}`);
  }

  #image({ index, seed, format, width, height, flagged, data }) {
    const picture = this.pictures[index];
    if (!picture) return;
    const file = fileOf(data, format);
    Object.assign(picture, { seed, format, width, height, name: fileName(this.asked.prompt, seed, format), card: this });
    this.#show(picture, file, "");
    picture.frame.style.setProperty("--shape", `${width} / ${height}`);
    picture.frame.classList.remove("waiting");
    picture.frame.disabled = false;
    picture.frame.onclick = () => this.does.view(picture);
    picture.image.alt = flagged ? "Black: the model's safety checker objected" : this.asked.prompt;
    picture.frame.setAttribute("aria-label", `View ${this.asked.prompt}, seed ${seed}`);
  }

  #finished({ timings, warnings, skipped_steps: skipped }) {
    this.job = { ...this.job, timings, warnings };
    for (const picture of this.pictures) {
      picture.skipped = skipped[picture.index] ?? [];
      picture.total ||= this.asked.num_inference_steps;
      picture.steps.replaceChildren(strip(picture.total, picture.total, picture.skipped));
    }
    const [first] = this.pictures, seconds = timings.queue_s + timings.encode_s + timings.denoise_s + timings.decode_s;
    const most = Math.max(...this.pictures.map((picture) => picture.skipped.length));
    this.#say(`Drawn in ${seconds.toFixed(1)} s${most ? `, guidance skipped on ${most} of ${first.total} steps` : ""}`);
    this.facts.textContent = [facts(this.asked), `seed ${first.seed}`, ...warnings].join(" · ");
    const save = element("a", { className: "button", href: first.image.src, download: first.name }, "Save");
    this.#offer(this.#reuse(this.settingsOf(first, this.pictures.length)), this.pictures.length === 1 && save);
  }

  /** What draws a picture again: its seed, and the steps that skipped guidance. */
  settingsOf(picture, n = 1) {
    const { skip_cfg: asked, ...settings } = this.asked;
    const same = this.pictures.every(({ skipped }) => String(skipped) === String(picture.skipped));
    const replayed = picture.skipped?.length && (n === 1 || same) ? { skip_cfg: picture.skipped } : asked === undefined ? {} : { skip_cfg: asked };
    return { ...settings, ...replayed, n, seed: picture.seed };
  }

  #show(picture, file, className) {
    const before = picture.image.src;
    picture.image.src = URL.createObjectURL(file);
    if (before) URL.revokeObjectURL(before);
    picture.image.className = className;
    picture.image.hidden = false;
  }

  #which({ index }) {
    return this.pictures.length > 1 ? `, picture ${index + 1} of ${this.pictures.length}` : "";
  }

  #say(words, aloud = true) {
    this.state.textContent = words;
    if (aloud) announce(`${this.asked.prompt}: ${words}`);
  }

  #reuse(settings) {
    return element("button", { type: "button", onclick: () => this.does.reuse(settings) }, "Use these settings");
  }

  /** Other actions; whoever stood on one of the old ones stands on the card. */
  #offer(...actions) {
    const hadFocus = this.actions.contains(document.activeElement);
    this.actions.replaceChildren(...actions.filter(Boolean));
    if (hadFocus) this.element.focus();
  }
}

/** The settings in a line. */
export function facts({ model, size, num_inference_steps: steps, guidance_scale: guidance, sampler, negative_prompt: not }) {
  const named = [model, size.replace("x", " × "), steps && `${steps} steps`, guidance != null && `guidance ${guidance}`, sampler && samplerName(sampler)];
  return [...named, not && `without ${not}`].filter(Boolean).join(" · ");
}
