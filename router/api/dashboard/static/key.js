// The API key: in this tab's session only.
import { byId } from "./dom.js";

const NAME = "tidepipe-key";

/** Headers that show the key, if there is one. */
export function keyHeaders() {
  const key = sessionStorage.getItem(NAME);
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** Open the field: somebody asked for a key. */
export function askForKey() {
  byId("key").open = true;
  byId("key-field").focus();
}

/** Wire the field; `changed` is called after each change. */
export function setUpKey(changed) {
  const field = byId("key-field");
  const keep = (key) => {
    if (key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
    field.value = "";
    field.placeholder = key ? "a key is in use" : "none needed by default";
    byId("key").open = false;
    changed();
  };
  if (sessionStorage.getItem(NAME)) field.placeholder = "a key is in use";
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keep(field.value.trim());
  });
  byId("key-forget").addEventListener("click", () => keep(""));
}
