// One tooltip for all canvases.
import { byId, setText } from "./dom.js";

/** Show a text beside the pointer; no event or no text: none. */
export function showTip(event, text = null) {
  const tip = byId("tip");
  tip.hidden = !event || !text;
  if (tip.hidden) return;
  setText(tip, text);
  const width = tip.offsetWidth;
  const left = event.clientX + 14 + width > window.innerWidth ? event.clientX - width - 14 : event.clientX + 14;
  const below = event.clientY + 18 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${below ? event.clientY + 18 : event.clientY - tip.offsetHeight - 12}px`;
}
