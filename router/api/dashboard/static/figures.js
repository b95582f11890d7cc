// The key figures at the top.
import { byId, duration, el, percent, plural, reconcile, setText, whole } from "./dom.js";

const RATE_MS = 5000;

export function updateFigures(state, load) {
  const { requests, promises } = state;
  const statuses = state.instances.map((one) => one.status).filter(Boolean);
  const mean = (read) => (statuses.length ? statuses.reduce((sum, one) => sum + read(one), 0) / statuses.length : 0);
  const recoveries = statuses.reduce((sum, one) => sum + Math.max(0, one.epoch - 1), 0);
  const serving = statuses.filter((one) => one.serving).length;
  const figures = [
    {
      name: "Requests", value: `${whole(requests.running)} running`,
      note: `${whole(requests.queued)} queued, ${whole(requests.finished)} done, ${whole(requests.failed)} failed` +
        (requests.shed ? `, ${whole(requests.shed)} told to come again` : ""),
      mood: requests.queued > requests.running && requests.queued > 8 ? "warn" : "",
    },
    { name: "Output", value: `${whole(rate(load))} tokens/s`, note: `${whole(requests.generated_tokens)} since start` },
    promise("TTFT kept, last minute", promises.ttft),
    promise("TPOT kept, last minute", promises.tpot),
    {
      name: "KV memory", value: percent(mean((one) => one.kv_used)),
      note: `forecast peak ${percent(mean((one) => one.kv_forecast))}, mean of instances; ${reused(statuses)}`,
    },
    {
      name: "Instances", value: `${serving} of ${state.instances.length} serve`,
      mood: state.instances.length && serving < state.instances.length ? "bad" : "",
      note: `${whole(recoveries)} recoveries, ${plural(requests.moved, "sequence")} moved`,
    },
  ];
  reconcile(byId("figures"), figures, (one) => one.name, create, fill);
}

/** How much is kept for requests that begin alike, and how much of what they asked for was found. */
function reused(statuses) {
  const known = statuses.map((one) => one.reuse).filter((one) => one?.on);
  if (!known.length) return "nothing is kept";
  const sum = (name) => known.reduce((total, one) => total + one[name], 0);
  const cached = statuses.reduce((total, one) => total + one.kv_cached, 0) / statuses.length;
  const rate = sum("asked_tokens") ? `, hit rate ${percent(sum("found_tokens") / sum("asked_tokens"))}` : "";
  return `${percent(cached)} cached${rate}`;
}

function promise(name, { target_ms, met, count, p50_ms, p90_ms }) {
  if (!count) return { name, value: "–", note: `target ${duration(target_ms)}; nothing ended yet` };
  const share = met / count;
  return {
    name, value: percent(share), mood: share >= 0.9 ? "good" : share >= 0.5 ? "warn" : "bad",
    note: `target ${duration(target_ms)}, ${plural(count, "answer")}; p50 ${duration(p50_ms)}, p90 ${duration(p90_ms)}`,
  };
}

function rate(load) {
  const last = load.at(-1);
  if (!last) return 0;
  const first = load.find((entry) => entry[0] >= last[0] - RATE_MS);
  return last[0] > first[0] ? (1000 * (last[3] - first[3])) / (last[0] - first[0]) : 0;
}

function create(figure) {
  const node = el("div", { class: "figure", data: { name: figure.name } }, el("div", { class: "name", text: figure.name }));
  node.value = el("div", { class: "value" });
  node.note = el("div", { class: "note" });
  node.append(node.value, node.note);
  return node;
}

function fill(node, figure) {
  setText(node.value, figure.value);
  node.value.dataset.mood = figure.mood ?? "";
  setText(node.note, figure.note);
}
