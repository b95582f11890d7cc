// The timeline: the router's queue, then each instance with its stages and its memory, on one axis of time.
import { byId, duration, el, percent, plural, reconcile, setText, whole } from "./dom.js";
import { AXIS, drawAxis, drawCurve, drawFloor, drawScale, drawStage, drawTurns, prepare, readPalette } from "./draw.js";
import { firstFrom, PHASES } from "./history.js";
import { showTip } from "./tip.js";

const LAG_MS = 800; // news are so old at most, mostly
const FRAME_MS = 100;
const FLAGS = 12;
const GAP = 4;
const CURVE = 36;

export class Timeline {
  constructor(model) {
    this.model = model;
    this.blocks = new Map();
    this.pausedAt = null;
    readPalette();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readPalette);
    byId("pause").addEventListener("click", () => this.pause());
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    setInterval(() => this.calm.matches || document.hidden || this.draw(), FRAME_MS);
  }

  pause() {
    this.pausedAt = this.pausedAt === null ? this.model.now() - LAG_MS : null;
    byId("pause").setAttribute("aria-pressed", String(this.pausedAt !== null));
    setText(byId("pause"), this.pausedAt === null ? "Pause" : "Go on");
    this.draw();
  }

  /** Texts and blocks, with each message. */
  update(state) {
    const router = { id: "router", router: true, requests: state.requests };
    const order = state.macros.flatMap((macro) => macro.members.map((member) => member.id));
    const rank = (instance) => (order.indexOf(instance.id) + order.length + 1) % (order.length + 1);
    const instances = [...state.instances].sort((a, b) => rank(a) - rank(b));
    reconcile(
      byId("timeline"), [router, ...instances], (item) => item.id,
      (item) => this.create(item), (node, item) => this.fill(this.blocks.get(item.id), item, instances.length),
    );
    const there = new Set(["router", ...order, ...instances.map((item) => item.id)]);
    for (const id of this.blocks.keys()) if (!there.has(id)) this.blocks.delete(id);
    if (this.calm.matches) this.draw();
  }

  create(item) {
    const block = {
      id: item.id, router: Boolean(item.router), name: el("h3", { text: item.router ? "Router queue" : item.id }),
      chip: el("span", { class: "chip" }), facts: el("span", { class: "facts quiet" }),
      why: el("span", { class: "why quiet" }), slow: el("span", { class: "slow" }), labels: el("div", { class: "labels" }),
      canvas: el("canvas", { role: "img" }), list: el("ol"), stages: [], height: CURVE, laneHeight: 20,
    };
    block.switches = el("details", { class: "switches" }, el("summary", { text: "Why it switched" }), block.list);
    const lanes = el("div", { class: "lanes" }, block.labels, el("div", {}, block.canvas));
    const title = el("div", { class: "title" }, block.name, block.chip, block.facts, block.why, block.slow);
    block.node = el("div", { class: "block", data: { id: item.id } }, title, lanes, ...(item.router ? [] : [block.switches]));
    block.canvas.addEventListener("pointermove", (event) => showTip(event, this.lookUp(block, event)));
    block.canvas.addEventListener("pointerleave", () => showTip(null));
    this.blocks.set(item.id, block);
    return block.node;
  }

  fill(block, item, count) {
    if (block.router) return fillRouter(block, item.requests);
    const status = item.status;
    const phase = status?.serving ? PHASES[status.phase] : "down";
    block.node.dataset.phase = phase;
    block.chip.dataset.phase = phase;
    setText(block.chip, status?.serving ? `${phase} ${duration(1000 * status.phase_age_s)}` : "not serving");
    if (!status) {
      setText(block.why, item.error || "no answer yet");
      return undefined;
    }
    setText(block.facts, instanceFacts(item, status));
    setText(block.why, status.serving ? status.reason && `why ${phase}: ${status.reason}` : status.detail);
    block.why.title = status.reason;
    const slow = [...new Set(status.stages.map((stage) => stage.slow).filter(Boolean))];
    setText(block.slow, slow.length ? `Several times slower than it could be: ${slow.join("; ")}` : "");
    block.laneHeight = count > 4 ? 13 : 20;
    if (block.stages.length !== status.stages.length) addStages(block, status.stages);
    status.stages.forEach((stage, i) => fillStage(block.stages[i], stage, i));
    setText(block.memory, percent(status.kv_used));
    block.memory.parentNode.title = `KV memory in use${reuseFacts(status)}`;
    setText(block.peak, percent(status.kv_forecast));
    block.height = FLAGS + status.stages.length * (block.laneHeight + GAP) + CURVE;
    for (const stage of block.stages) stage.node.style.height = `${block.laneHeight + GAP}px`;
    listSwitches(block, this.model);
    return undefined;
  }

  view() {
    const to = this.pausedAt ?? this.model.now() - LAG_MS;
    return { from: to - 1000 * Number(byId("window").value), to };
  }

  draw() {
    const view = this.view();
    for (const block of this.blocks.values()) {
      if (!block.canvas.isConnected) continue;
      const box = block.canvas.getBoundingClientRect();
      if (box.bottom < -50 || box.top > window.innerHeight + 50) continue;
      if (block.router) this.drawQueue(block, view);
      else this.drawInstance(block, view);
    }
  }

  drawInstance(block, view) {
    const past = this.model.history(block.id);
    const surface = prepare(block.canvas, block.height + AXIS);
    const parts = block.stages.map((stage, i) => {
      const top = FLAGS + i * (block.laneHeight + GAP);
      const shares = drawStage(surface, past.stages[i] ?? [], view, top, block.laneHeight);
      PHASES.slice(1).forEach((name, code) => { stage.node.dataset[name] = shares[code + 1].toFixed(3); });
      return `stage ${i} ${percent(shares[1])} prefill, ${percent(shares[2])} decode, ${percent(shares[3])} mixed`;
    });
    const top = FLAGS + block.stages.length * (block.laneHeight + GAP) + 2;
    const samples = past.samples.slice(Math.max(0, firstFrom(past.samples, view.from, (one) => one.at) - 1));
    const height = CURVE - 4;
    drawCurve(surface, samples.map((one) => [one.at, one.used]), view, top, height, "memory");
    drawCurve(surface, samples.map((one) => [one.at, one.forecast]), view, top, height, "forecast", true);
    drawFloor(surface, top + height);
    drawTurns(surface, past.turns, view, block.height);
    drawAxis(surface, view, block.height, FLAGS);
    drawScale(surface, top, height, "100 %");
    block.canvas.setAttribute("aria-label", `${block.id}: ${parts.join("; ")}`);
  }

  drawQueue(block, view) {
    const surface = prepare(block.canvas, CURVE + 4 + AXIS);
    const load = this.model.load;
    const most = rounded(Math.max(4, ...load.map((one) => one[1] + one[2])));
    drawCurve(surface, load.map(([at, queued, running]) => [at, (queued + running) / most]), view, 2, CURVE, "accent");
    drawCurve(surface, load.map(([at, queued]) => [at, queued / most]), view, 2, CURVE, "forecast", true);
    drawFloor(surface, CURVE + 2);
    drawAxis(surface, view, CURVE + 4, 2);
    drawScale(surface, 2, CURVE, whole(most));
    block.canvas.setAttribute("aria-label", "Requests running and queued");
  }

  /** What is under the pointer, in words. */
  lookUp(block, event) {
    const box = block.canvas.getBoundingClientRect();
    const view = this.view();
    const at = view.from + ((event.clientX - box.left) / box.width) * (view.to - view.from);
    const ago = `${duration(view.to - at)} ago`;
    if (block.router) return queueTip(this.model.load, at, ago);
    const past = this.model.history(block.id);
    const reach = (6 / box.width) * (view.to - view.from);
    const turn = past.turns.find((one) => Math.abs(one.at - at) < reach);
    const y = event.clientY - box.top;
    const row = Math.floor((y - FLAGS) / (block.laneHeight + GAP));
    if (turn && (y < FLAGS || row >= block.stages.length)) return turnTip(turn, view);
    if (row >= block.stages.length) return memoryTip(past.samples, at, ago);
    const spans = past.stages[row] ?? [];
    const span = spans[firstFrom(spans, at, (one) => one.end)];
    if (span && span.start <= at) return stepTip(row, span, ago) + (turn ? `\n\n${turnTip(turn, view)}` : "");
    return turn ? turnTip(turn, view) : `stage ${row}: idle, ${ago}`;
  }
}

/** The next number that is easily read: 1, 2 or 5 and noughts. */
function rounded(number) {
  const unit = 10 ** Math.floor(Math.log10(number));
  return unit * [1, 2, 5, 10].find((one) => unit * one >= number);
}

function fillRouter(block, requests) {
  block.chip.hidden = true;
  const waits = requests.pending ? `, the first for ${duration(1000 * requests.oldest_wait_s)}` : "";
  setText(block.facts, `${whole(requests.running)} running, ${whole(requests.queued)} queued of at most ${whole(requests.most)}`);
  setText(block.why, requests.pending ? `${plural(requests.pending, "answer")} wait for an instance${waits}: ${requests.why}` : "");
  if (!block.labels.childNodes.length) {
    block.labels.append(el("div", {}, el("b", { text: "requests" })), el("div", { text: "queued - -" }));
  }
}

function instanceFacts(item, status) {
  const batches = status.batches.length ? ` in batches of ${status.batches.join(" + ")}` : "";
  const again = status.epoch > 1 ? `, epoch ${status.epoch}` : "";
  const leaving = item.draining ? ", draining" : "";
  return `${status.policy}: ${whole(status.running)} running${batches}, ${whole(status.waiting)} waiting${again}${leaving}`;
}

/** What is kept of its memory, and what was found there. */
function reuseFacts(status) {
  const { reuse } = status;
  if (!reuse) return "";
  if (!reuse.on) return "\nnothing is kept: --prefix-caching off";
  const rate = reuse.asked_tokens
    ? `; hit rate ${percent(reuse.found_tokens / reuse.asked_tokens)} of ${plural(reuse.asked_tokens, "token")}` : "";
  return `\n${percent(status.kv_cached)} of it is cached, ${plural(reuse.evicted_blocks, "block")} evicted${rate}`;
}

function addStages(block, stages) {
  block.stages = stages.map(() => {
    const stage = { name: el("b"), busy: el("span") };
    stage.node = el("div", { class: "lane" }, stage.name, stage.busy);
    return stage;
  });
  block.memory = el("span");
  block.peak = el("span");
  const spacer = el("div");
  spacer.style.height = `${FLAGS}px`;
  const memory = el("div", {}, el("b", { text: "KV" }), block.memory);
  const peak = el("div", { title: "KV memory at the forecast peak" }, el("span", { text: "forecast" }), block.peak);
  for (const label of [memory, peak]) label.style.height = `${CURVE / 2}px`;
  block.labels.replaceChildren(spacer, ...block.stages.map((stage) => stage.node), memory, peak);
}

function fillStage(stage, facts, index) {
  stage.node.dataset.stage = index;
  setText(stage.name, `stage ${index}`);
  setText(stage.busy, facts.alive ? percent(facts.busy) : "gone");
  stage.node.title =
    `layers ${facts.layers[0]} to ${facts.layers[1] - 1} on ${facts.device}: busy ${percent(facts.busy)} of the last 10 s, ` +
    `bubbles ${percent(facts.bubbles)} of its working time`;
}

function listSwitches(block, model) {
  if (!block.switches.open) return;
  const turns = model.history(block.id).turns.slice(-12).reverse();
  block.list.replaceChildren(...turns.map((turn) => el("li", { text: turnTip(turn, { to: model.now() }) })));
  if (!turns.length) block.list.replaceChildren(el("li", { text: "It has not switched lately." }));
}

const turnTip = (turn, view) =>
  `${duration(view.to - turn.at)} ago: ${PHASES[turn.before]} → ${PHASES[turn.after]}\n${turn.reason}`;

const stepTip = (stage, span, ago) =>
  `stage ${stage}, step ${span.step}: ${PHASES[span.phase]}, ${duration(span.end - span.start)}\n` +
  `${plural(span.tokens, "token")}, ${whole(span.rows)} of them decode rows; ${ago}`;

function memoryTip(samples, at, ago) {
  const sample = samples[firstFrom(samples, at, (one) => one.at)];
  if (!sample) return null;
  const counts = sample.running === null ? "" : `\n${whole(sample.running)} running, ${whole(sample.waiting)} waiting`;
  return `KV memory, ${ago}: ${percent(sample.used)} in use, ${percent(sample.forecast)} at the forecast peak${counts}`;
}

function queueTip(load, at, ago) {
  const entry = load[firstFrom(load, at, (one) => one[0])];
  return entry ? `${ago}: ${whole(entry[2])} running, ${whole(entry[1])} queued` : null;
}
