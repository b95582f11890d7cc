// The prompt box: one chat completion, streamed.
import { byId, duration, setText, whole } from "./dom.js";
import { askForKey, keyHeaders } from "./key.js";
import { events, Refusal } from "./sse.js";

let running = null;

export function setUpAsk() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else ask().catch(() => {});
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
  });
}

async function ask() {
  const answer = byId("answer");
  const facts = byId("answer-facts");
  running = new AbortController();
  answer.hidden = false;
  answer.dataset.state = "waiting";
  answer.textContent = "";
  setText(facts, "waiting for the first token");
  setText(byId("send"), "Stop");
  const began = performance.now();
  let first = null;
  let usage = null;
  try {
    for await (const data of await completion(running.signal)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refusal(500, chunk.error.message);
      const text = chunk.choices?.[0]?.delta?.content;
      if (text) {
        first ??= performance.now() - began;
        answer.dataset.state = "streaming";
        const below = answer.scrollTop + answer.clientHeight >= answer.scrollHeight - 20;
        answer.append(text);
        if (below) answer.scrollTop = answer.scrollHeight;
        setText(facts, `first token after ${duration(first)}`);
      }
      usage = chunk.usage ?? usage;
    }
    answer.dataset.state = "done";
    setText(facts, summary(first, performance.now() - began, usage));
  } catch (error) {
    const stopped = error.name === "AbortError";
    answer.dataset.state = stopped ? "stopped" : "failed";
    if (error.status === 401 || error.status === 403) askForKey();
    setText(facts, stopped ? "stopped" : "not answered");
    if (!stopped) answer.append(answer.textContent ? `\n\n${error.message}` : error.message);
  } finally {
    running = null;
    setText(byId("send"), "Send");
  }
}

async function completion(signal) {
  const models = await fetch("../v1/models", { headers: keyHeaders(), signal });
  if (!models.ok) throw new Refusal(models.status, (await models.json()).error?.message ?? `HTTP ${models.status}`);
  const served = (await models.json()).data;
  if (!served.length) throw new Refusal(503, "No model is served yet: there is no instance.");
  const body = {
    model: served[0].id,
    messages: [{ role: "user", content: byId("prompt").value }],
    max_tokens: Number(byId("most").value) || 200,
    stream: true,
    stream_options: { include_usage: true },
  };
  const headers = { "content-type": "application/json" };
  return events("../v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
}

function summary(first, total, usage) {
  const tokens = usage?.completion_tokens ?? 0;
  const pace = tokens > 1 && first !== null ? `, then ${duration((total - first) / (tokens - 1))} per token` : "";
  return `${whole(tokens)} tokens; first after ${duration(first)}${pace}`;
}
