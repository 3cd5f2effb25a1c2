// What went wrong, in words.
import { samplerName } from "./samplers.js";

/** An error that the server told of. `param`: the setting it is about; `code`: for programs. */
export class ServerError extends Error {
  constructor(message, { param, code, retryAfterS } = {}) {
    super(message);
    Object.assign(this, { param, code, retryAfterS });
  }

  /** From OpenAI's envelope, as answers and streams carry it. */
  static of({ error }, retryAfterS) {
    return new ServerError(error.message, { param: error.param, code: error.code, retryAfterS });
  }
}

/** The error that a response is. */
export async function errorOf(response) {
  const retryAfterS = Number(response.headers.get("retry-after")) || undefined;
  try {
    return ServerError.of(await response.json(), retryAfterS);
  } catch {
    return new ServerError(`The server answered with status ${response.status}.`, { code: String(response.status) });
  }
}

const SETTINGS = {
  prompt: "Prompt", negative_prompt: "Negative prompt", model: "Model", size: "Size", n: "Pictures", seed: "Seed",
  num_inference_steps: "Steps", guidance_scale: "Guidance", sampler: "Sampler", skip_cfg: "Skipped guidance",
};

const WORDS = {
  queue_full: (error) => `${sentence(error.message)} ${later(error)}`,
  too_many_requests: (error) => `The server has too many requests open. ${later(error)}`,
  unavailable: () => "Nobody is there to draw just now. Try again in a moment.",
  unreachable: () => "The server does not answer. Is it still running?",
  cut_off: () => "The connection broke before the picture was there.",
  invalid_api_key: () => "This server asks for an API key. Enter it below the settings.",
  timeout: () => "It took longer than the server allows.",
};

/** A sentence for people. */
export function inWords(error) {
  const words = WORDS[error.code];
  if (words) return words(error);
  const setting = SETTINGS[error.param];
  const message = error.message.replace(/^job \S+ failed: /, "").replace(/SAMPLER_(\w+)/g, (_, name) => samplerName(name.toLowerCase()));
  if (!setting) return sentence(message);
  return sentence(`${setting}: ${message.replace(new RegExp(`^'?${error.param}'?:\\s*`), "")}`);
}

function later({ retryAfterS }) {
  return retryAfterS ? `Try again in ${retryAfterS} s.` : "Try again in a moment.";
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
