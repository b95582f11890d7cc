// Server-sent events by fetch: EventSource cannot send a key.
import { keyHeaders } from "./key.js";

/** The server said no; `status` is HTTP's, the message is the server's own. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The data of each event of a stream, as text. Raises Refusal, or what fetch raises. */
export async function* events(url, options = {}) {
  const headers = { ...keyHeaders(), ...options.headers };
  const reply = await fetch(url, { ...options, headers, cache: "no-store" });
  if (!reply.ok) throw new Refusal(reply.status, await reason(reply));
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        if (part.startsWith("data: ")) yield part.slice(6);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function reason(reply) {
  try {
    return (await reply.json()).error.message;
  } catch {
    return `HTTP ${reply.status}`;
  }
}
