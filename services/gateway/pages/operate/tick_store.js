// The ticks of the last minutes, as items with both their sides.

const KEPT_MS = 90_000;
const MOST_ROUNDS = 8192;

/** Items by lane, and the rounds that they were planned in. Times in ms of the server's clock. */
export class TickStore {
  constructor() {
    this.begun();
  }

  /** Another leader numbers its ticks and rounds anew. */
  begun() {
    this.rounds = new Map();
    this.items = new Map();
    this.lanes = new Map();
    this.counters = new Map();
    this.newestMs = 0;
  }

  /** A message of the stream. Returns its parts. */
  take({ parts = [], rounds = [] }) {
    for (const round of rounds) this.rounds.set(round.id, round);
    for (const id of this.rounds.keys()) if (this.rounds.size > MOST_ROUNDS) this.rounds.delete(id);
    for (const part of parts) this.#takePart(part);
    this.#forget();
    return parts;
  }

  #takePart(part) {
    const { domain, worker_id: worker, kind } = part;
    const name = `${domain} ${worker}`;
    if (!this.lanes.has(name)) this.#addLane(name, { domain, worker, kind, sides: [] });
    const lane = this.lanes.get(name);
    for (const ran of part.items ?? []) lane.sides.push(this.#side(part, ran));
    const endMs = part.items?.at(-1)?.end_unix_ms;
    if (!endMs) return;
    this.newestMs = Math.max(this.newestMs, endMs);
    const counters = this.counters.get(domain) ?? [];
    counters.push({ ms: endMs, threshold: part.threshold ?? 0, waiting: part.waiting_tasks ?? 0, decodes: part.pending_decodes ?? 0 });
    this.counters.set(domain, counters);
  }

  /** UNet lanes stand above those of the VAE, domain by domain. */
  #addLane(name, lane) {
    this.lanes.set(name, lane);
    const order = ([, a], [, b]) => a.domain.localeCompare(b.domain) || a.kind.localeCompare(b.kind) || a.worker.localeCompare(b.worker);
    this.lanes = new Map([...this.lanes].sort(order));
  }

  #side(part, ran) {
    const key = `${part.domain} ${part.tick} ${ran.place}`;
    const item = this.items.get(key) ?? { key, tick: Number(part.tick), place: ran.place, domain: part.domain, plan: ran.plan, part };
    const side = { item, kind: part.kind, worker: part.worker_id, startMs: ran.start_unix_ms, endMs: ran.end_unix_ms, rows: ran.rows ?? 0, waitedMs: ran.waited_ms ?? 0, halved: ran.halved ?? 0, stale: part.stale ?? 0 };
    item[part.kind] = side;
    if (part.why) item.part = part;
    this.items.set(key, item);
    return side;
  }

  #forget() {
    const oldestMs = this.newestMs - KEPT_MS;
    for (const lane of this.lanes.values()) {
      const gone = lane.sides.findIndex(({ endMs }) => endMs >= oldestMs);
      for (const side of lane.sides.splice(0, Math.max(0, gone))) this.items.delete(side.item.key);
    }
    for (const counters of this.counters.values()) counters.splice(0, Math.max(0, counters.findIndex(({ ms }) => ms >= oldestMs) - 1));
  }
}

/** From the start of an item's first side to the end of its last, in ms. */
export function measuredMs({ unet, vae }) {
  const sides = [unet, vae].filter(Boolean);
  return Math.max(...sides.map(({ endMs }) => endMs)) - Math.min(...sides.map(({ startMs }) => startMs));
}

/** Measured over predicted time; undefined where the two do not speak of the same. */
export function ratio(item) {
  const { plan, unet, vae, part } = item;
  const whole = (!plan?.rows || unet) && (!plan?.decodes || vae);
  const asPlanned = whole && part.in_step && ![unet, vae].some((side) => side?.stale || side?.halved);
  return asPlanned && plan.predicted_ms ? measuredMs(item) / plan.predicted_ms : undefined;
}
