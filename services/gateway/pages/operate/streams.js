// Streams that are open while somebody looks, and come back by themselves.
import { eventsOf } from "../shared/events.js";
import { inWords, ServerError } from "../shared/errors.js";

const AGAIN_MS = 1000;

/** Follow `url` while the page is seen. `heard`: each event; `lost`: why there are none, in words. */
export function follow(url, heard, lost) {
  let open;
  const start = () => {
    open ??= new AbortController();
    run(url, heard, lost, open.signal);
  };
  const stop = () => {
    open?.abort();
    open = undefined;
  };
  const seen = () => (document.hidden ? stop() : open ?? start());
  document.addEventListener("visibilitychange", seen);
  seen();
  return { stop() { document.removeEventListener("visibilitychange", seen); stop(); } };
}

async function run(url, heard, lost, signal) {
  while (!signal.aborted) {
    try {
      for await (const { name, data } of eventsOf(url, { signal })) {
        if (name === "error") lost(inWords(ServerError.of(data)));
        else heard(name, data);
      }
      lost("The server ended the stream.");
    } catch (error) {
      if (error.name === "AbortError") return;
      lost(inWords(error));
    }
    await new Promise((again) => setTimeout(again, AGAIN_MS));
  }
}
