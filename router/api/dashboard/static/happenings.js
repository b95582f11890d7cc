// What happened, newest first.
import { byId, el } from "./dom.js";

const MOST = 60;

export function addHappenings(entries, fresh, wallOf) {
  const list = byId("happenings");
  if (fresh && entries.length) list.replaceChildren();
  if (!entries.length) return;
  list.querySelector(".empty")?.remove();
  for (const [at, kind, text] of entries.slice(-MOST)) {
    const when = new Date(wallOf(at));
    const time = el("time", { text: when.toLocaleTimeString("en-GB"), datetime: when.toISOString() });
    list.prepend(el("li", { data: { kind } }, el("i"), time, el("span", { text })));
  }
  while (list.childNodes.length > MOST) list.lastChild.remove();
}
