// The server's clock as seen from here. Ticks say when they ended; the one that came soonest says how far apart both are.

const BEHIND_MS = 450; // messages come five times a second: so far behind, the newest ticks are there already
const REMEMBERED_MS = 30_000;

export class ServerClock {
  #heard = [];
  #aheadMs = performance.timeOrigin;

  /** A tick that ended at `endMs` of the server's clock has just been heard of. */
  heard(endMs, nowMs = performance.now()) {
    this.#heard = this.#heard.filter(({ atMs }) => nowMs - atMs < REMEMBERED_MS);
    this.#heard.push({ atMs: nowMs, aheadMs: endMs - nowMs });
  }

  /** The right edge of the timeline. Until a tick is heard of, both clocks are taken to be the same. */
  edgeMs(nowMs = performance.now()) {
    if (this.#heard.length) this.#aheadMs = Math.max(...this.#heard.map(({ aheadMs }) => aheadMs));
    return nowMs + this.#aheadMs - BEHIND_MS;
  }
}
