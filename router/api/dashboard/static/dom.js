// Elements and figures. All text goes in as text, never as markup.

/** An element with attributes (text: its text, data: its data attributes) and children. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Set text only if it is another one, so that selections and screen readers are left in peace. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const byId = (id) => document.getElementById(id);
export const percent = (share) => `${Math.round(100 * share)} %`;
export const whole = (number) => Math.round(number).toLocaleString("en");
export const plural = (count, one) => `${whole(count)} ${one}${count === 1 ? "" : "s"}`;

/** Milliseconds as an operator reads them. */
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (Math.abs(ms) < 10) return `${ms.toFixed(1)} ms`;
  if (Math.abs(ms) < 1000) return `${Math.round(ms)} ms`;
  if (Math.abs(ms) < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  if (Math.abs(ms) < 3_600_000) return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
  return `${Math.floor(ms / 3_600_000)} h ${Math.round((ms % 3_600_000) / 60_000)} min`;
}

/** Make the children of a list those of `items`, by key; nodes of known keys stay. */
export function reconcile(parent, items, key, create, update) {
  const known = parent.keyed ?? new Map();
  const kept = new Map();
  for (const item of items) {
    const name = key(item);
    const node = known.get(name) ?? create(item);
    update(node, item);
    kept.set(name, node);
  }
  const wanted = [...kept.values()];
  if (wanted.length !== parent.childNodes.length || wanted.some((node, i) => parent.childNodes[i] !== node)) {
    parent.replaceChildren(...wanted);
  }
  parent.keyed = kept;
}
