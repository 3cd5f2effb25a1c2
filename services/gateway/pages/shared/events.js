// Server-sent events over fetch: with a body, headers and an end, which EventSource does not have.
import { authorization } from "./key.js";
import { ServerError, errorOf } from "./errors.js";

/** The events that `url` answers with, as {name, data}. Throws ServerError, or AbortError once `signal` is aborted. */
export async function* eventsOf(url, { body, signal } = {}) {
  const response = await answered(url, {
    method: body ? "POST" : "GET",
    headers: { ...authorization(), ...(body && { "content-type": "application/json" }) },
    body,
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const event of blocks.map(parsed)) if (event) yield event;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** JSON from `url`. Throws ServerError. */
export async function jsonOf(url, signal) {
  return (await answered(url, { headers: authorization(), signal })).json();
}

async function answered(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer.", { code: "unreachable" });
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

function parsed(block) {
  let name = "message", data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data += line.slice(6);
  }
  return data && { name, data: JSON.parse(data) };
}
