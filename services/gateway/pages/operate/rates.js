// Throughput and latency of the last minutes, second by second, from what the streams told.

export const SECONDS = 300;
const FEWEST = 60; // seconds of a curve that has only begun

/** Sums by second of the server's clock. */
export class Rates {
  #seconds = new Map();
  #jobs = [];

  /** Parts of ticks: what UNet workers stepped and VAE workers decoded. */
  takeParts(parts) {
    for (const { kind, items = [] } of parts) for (const { end_unix_ms: endMs, rows = 0, plan } of items) {
      const second = this.#second(endMs);
      if (kind === "unet") {
        second.steps += plan?.tasks ?? rows / 2;
        second.skips += plan?.skips ?? 0;
      } else second.images += plan?.decodes ?? rows;
    }
  }

  takeJobs(ended) {
    for (const { ended_unix_ms: ms, outcome, latency_ms: latencyMs = 0 } of ended) this.#jobs.push({ ms, outcome, latencyMs });
  }

  takeQueue(ms, waiting) {
    this.#second(ms).waiting = waiting;
  }

  /** One value per second up to `nowMs`, of what `valueOf` makes of a second's sums; undefined where nothing was heard. */
  series(nowMs, valueOf) {
    const last = Math.floor(nowMs / 1000), length = Math.min(SECONDS, Math.max(FEWEST, last - Math.min(...this.#seconds.keys()) + 1));
    return Array.from({ length }, (_, at) => {
      const second = this.#seconds.get(last - length + 1 + at);
      return second && valueOf(second);
    });
  }

  /** Latency in ms that a share of the finished jobs of the last `seconds` kept; undefined where none finished. */
  latencyMs(nowMs, share, seconds = SECONDS) {
    const since = nowMs - seconds * 1000;
    const finished = this.#jobs.filter(({ ms, outcome }) => outcome === "finished" && ms > since && ms <= nowMs + 1000);
    const sorted = finished.map(({ latencyMs }) => latencyMs).sort((a, b) => a - b);
    return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : undefined;
  }

  /** How many jobs of the last minutes did not finish. */
  unfinished() {
    return this.#jobs.filter(({ outcome }) => outcome !== "finished").length;
  }

  forget(nowMs) {
    const oldest = nowMs / 1000 - SECONDS - 1;
    for (const second of this.#seconds.keys()) if (second < oldest) this.#seconds.delete(second);
    this.#jobs = this.#jobs.filter(({ ms }) => ms > oldest * 1000);
  }

  #second(ms) {
    const number = Math.floor(ms / 1000);
    if (!this.#seconds.has(number)) this.#seconds.set(number, { steps: 0, skips: 0, images: 0, waiting: undefined });
    return this.#seconds.get(number);
  }
}

/** Means over `width` seconds: what a second holds jumps by whole ticks. */
export function smooth(series, width = 5) {
  let sum = 0;
  return series.map((value, at) => {
    sum += (value ?? 0) - (series[at - width] ?? 0);
    return sum / Math.min(width, at + 1);
  });
}
