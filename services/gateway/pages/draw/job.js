// One job: asked for, followed, and cancelled by hanging up.
import { ServerError } from "../shared/errors.js";
import { eventsOf } from "../shared/events.js";
import { inTurn } from "./turns.js";

/**
 * Draw what is asked for, after the page's earlier jobs. `told` hears each event: held, queued, started, progress, image,
 * finished. Throws ServerError, and AbortError once `signal` is aborted.
 */
export function draw(asked, told, signal) {
  return inTurn(() => follow(asked, told, signal), (ahead) => told("held", { ahead }), signal);
}

async function follow(asked, told, signal) {
  for await (const { name, data } of eventsOf("api/jobs", { body: JSON.stringify(asked), signal })) {
    if (name === "error") throw ServerError.of(data);
    told(name, data);
    if (name === "finished") return;
  }
  throw new ServerError("cut off", { code: "cut_off" });
}
