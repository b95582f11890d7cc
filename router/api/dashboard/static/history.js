// What is kept of the stream for drawing. All times are milliseconds of the feed.

const KEEP_MS = 65_000;
const MAX_SPANS = 12_000; // of one stage
export const PHASES = ["idle", "prefill", "decode", "mixed"];

/** One instance's past: steps by stage, turns of the phase, memory. */
export class InstanceHistory {
  constructor() {
    this.stages = [];
    this.turns = [];
    this.samples = [];
  }

  take(news, now) {
    for (const [stage, phase, start, length, tokens, rows, step] of news.spans) {
      (this.stages[stage] ??= []).push({ phase, start, end: start + length, tokens, rows, step });
    }
    for (const [at, before, after, reason] of news.turns) this.turns.push({ at, before, after, reason });
    for (const [at, used, forecast, running, waiting] of news.samples) {
      this.samples.push({ at, used, forecast, running, waiting });
    }
    for (const spans of this.stages) {
      if (spans) drop(spans, now, (span) => span.end);
    }
    drop(this.turns, now, (turn) => turn.at);
    drop(this.samples, now, (sample) => sample.at);
  }
}

/** Forget what is old: in large pieces, for each costs a copy. */
export function drop(entries, now, time) {
  const old = firstFrom(entries, now - KEEP_MS, time);
  const many = Math.max(old, entries.length - MAX_SPANS);
  if (many > entries.length / 8) entries.splice(0, many);
}

/** Index of the first entry at or after a time; entries are in order. */
export function firstFrom(entries, at, time) {
  let low = 0;
  let high = entries.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (time(entries[middle]) < at) low = middle + 1;
    else high = middle;
  }
  return low;
}
