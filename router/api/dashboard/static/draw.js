// Lanes on a canvas. `view` is {from, to}, milliseconds of the feed; x grows with time.
import { firstFrom, PHASES } from "./history.js";

let palette = {};

/** Read the colours of the present theme. */
export function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const names = [...PHASES, "mark", "memory", "forecast", "line", "quiet", "accent", "text", "card"];
  palette = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** Fit the canvas to its box at the screen's resolution; its context, in CSS pixels. */
export function prepare(canvas, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width };
}

/**
 * Steps of one stage. In a column narrower than a step the lane is full or empty; in a wider one each phase
 * is as high as its share of that time, so that bubbles show at every zoom. Returns each phase's share of the view.
 */
export function drawStage({ context, width }, spans, view, top, height) {
  context.fillStyle = palette.idle;
  context.fillRect(0, top, width, height);
  const columns = Math.max(1, Math.floor(width));
  const shares = [0, 0, 0, 0];
  const scale = columns / (view.to - view.from);
  const cover = PHASES.map(() => new Float32Array(columns + 1));
  for (let i = firstFrom(spans, view.from, (span) => span.end); i < spans.length; i += 1) {
    const span = spans[i];
    const begin = Math.max(0, (span.start - view.from) * scale);
    const end = Math.min(columns, (span.end - view.from) * scale);
    if (begin >= columns) break;
    if (end <= begin) continue;
    shares[span.phase] += (end - begin) / columns;
    for (let column = Math.floor(begin); column < end; column += 1) {
      cover[span.phase][column] += Math.min(end, column + 1) - Math.max(begin, column);
    }
  }
  paint(context, cover, columns, top, height);
  return shares;
}

function paint(context, cover, columns, top, height) {
  for (const phase of [1, 3, 2]) {
    context.fillStyle = palette[PHASES[phase]];
    let begin = 0;
    let shape = "";
    let box = [0, 0];
    for (let column = 0; column <= columns; column += 1) {
      const below = phase === 1 ? 0 : cover[1][column] + (phase === 2 ? cover[3][column] : 0);
      const bottom = Math.round(top + height * (1 - Math.min(1, below)));
      const tall = Math.round(height * Math.min(1 - Math.min(1, below), cover[phase][column]));
      const now = column === columns || tall === 0 ? "" : `${bottom}/${tall}`;
      if (now === shape) continue;
      if (shape) context.fillRect(begin, box[0], column - begin, box[1]);
      [begin, shape, box] = [column, now, [bottom - tall, tall]];
    }
  }
}

/** Phase switches: a line through all lanes, a flag in the colour of the phase that begins. */
export function drawTurns({ context, width }, turns, view, height) {
  const scale = width / (view.to - view.from);
  let last = -9;
  for (const turn of turns) {
    const x = (turn.at - view.from) * scale;
    if (x < 0 || x > width || x - last < 3) continue;
    last = x;
    context.fillStyle = palette.mark;
    context.globalAlpha = 0.3;
    context.fillRect(Math.round(x), 3, 1, height - 3);
    context.globalAlpha = 1;
    context.fillStyle = turn.after ? palette[PHASES[turn.after]] : palette.quiet;
    context.beginPath();
    context.moveTo(x - 4, 1);
    context.lineTo(x + 5, 1);
    context.lineTo(x + 0.5, 9);
    context.fill();
  }
}

/** A filled curve, or with `dashed` a line; points are [time, share of the height]. */
export function drawCurve({ context, width }, points, view, top, height, colour, dashed = false) {
  if (!points.length) return;
  const x = (at) => ((at - view.from) / (view.to - view.from)) * width;
  const y = (share) => top + height * (1 - Math.min(1, Math.max(0, share)));
  context.beginPath();
  points.forEach(([at, share], i) => (i ? context.lineTo(x(at), y(share)) : context.moveTo(x(at), y(share))));
  if (dashed) {
    context.strokeStyle = palette[colour];
    context.lineWidth = 1.5;
    context.setLineDash([5, 3]);
    context.stroke();
    context.setLineDash([]);
    return;
  }
  context.lineTo(x(points.at(-1)[0]), top + height);
  context.lineTo(x(points[0][0]), top + height);
  context.fillStyle = palette[colour];
  context.globalAlpha = 0.75;
  context.fill();
  context.globalAlpha = 1;
}

/** Bottom line of a lane of curves. */
export function drawFloor({ context, width }, y) {
  context.fillStyle = palette.line;
  context.fillRect(0, y, width, 1);
}

const STEPS_S = [1, 2, 5, 10, 20, 30];
const LABEL_PX = 62;
export const AXIS = 16;

/** The axis of time below the lanes, and a faint line through them at each of its labels. */
export function drawAxis({ context, width }, view, top, lanes) {
  const seconds = (view.to - view.from) / 1000;
  const step = STEPS_S.find((one) => (one / seconds) * width >= LABEL_PX) ?? seconds;
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "bottom";
  for (let ago = 0; ago < seconds; ago += step) {
    const x = Math.round(width * (1 - ago / seconds));
    context.fillStyle = palette.quiet;
    context.globalAlpha = 0.35;
    context.fillRect(Math.min(x, width - 1), lanes, 1, top - lanes + 4);
    context.globalAlpha = 1;
    context.textAlign = ago ? "center" : "right";
    const label = ago ? `-${ago} s` : "now";
    if (!ago || x > LABEL_PX / 2) context.fillText(label, x, top + AXIS);
  }
}

/** What the height of a lane of curves stands for: its upper end, in words, and 0. */
export function drawScale({ context }, top, height, most) {
  context.font = "10.5px system-ui, sans-serif";
  context.textAlign = "left";
  context.strokeStyle = palette.card;
  context.fillStyle = palette.text;
  context.lineWidth = 3;
  context.lineJoin = "round";
  for (const [words, y, line] of [[most, top, "top"], ["0", top + height, "bottom"]]) {
    context.textBaseline = line;
    context.strokeText(words, 3, y);
    context.fillText(words, 3, y);
  }
}
