// Macro instances: whose turn it is, and who is in its prefill window.
import { byId, duration, el, plural, reconcile, setText, whole } from "./dom.js";
import { PHASES } from "./history.js";

const NONE = "No instance yet. Controllers register by themselves when their stages are loaded.";

export function updateMacros(macros) {
  const place = byId("macros");
  if (!macros.length) {
    place.keyed = undefined;
    if (!place.querySelector(".empty")) place.replaceChildren(el("p", { class: "empty", text: NONE }));
    return;
  }
  const several = new Set(macros.map((macro) => macro.model)).size > 1;
  reconcile(place, macros, (macro) => macro.id, create, (node, macro) => fill(node, macro, several));
}

function create(macro) {
  const node = el("div", { class: "macro", data: { id: macro.id } });
  node.words = el("p", { class: "quiet" });
  node.members = el("ol", { class: "turns" });
  node.append(node.words, node.members);
  return node;
}

function fill(node, macro, several) {
  const rolling = macro.routing.startsWith("padg");
  const filling = macro.members.filter((member) => PHASES[member.phase] === "prefill").length;
  setText(
    node.words,
    `${macro.id}${several ? ` of ${macro.model}` : ""}: ${plural(macro.members.length, "instance")}, ${filling} in prefill; routing ${macro.routing}` +
      (rolling ? ", in this order" : ""),
  );
  const roles = macro.members.some((member) => member.share !== macro.members[0].share);
  reconcile(node.members, macro.members, (member) => member.id, createMember, (child, member) =>
    fillMember(child, member, macro.chosen === member.id, rolling, roles),
  );
}

function createMember() {
  const node = el("li", { class: "member" });
  node.name = el("span");
  node.turn = el("span", { class: "turn" });
  node.phase = el("div", { class: "fact" });
  node.fill = el("i");
  node.left = el("div", { class: "fact" });
  node.slack = el("div", { class: "fact" });
  node.share = el("div", { class: "fact" });
  node.append(
    el("div", { class: "name" }, node.name, node.turn), node.phase, el("div", { class: "bar" }, node.fill),
    node.left, node.slack, node.share,
  );
  return node;
}

function fillMember(node, member, chosen, rolling, roles) {
  const phase = PHASES[member.phase];
  node.dataset.phase = phase;
  node.dataset.turn = String(chosen);
  setText(node.name, member.id);
  setText(node.turn, chosen ? (rolling ? "its turn" : "last request") : "");
  setText(node.phase, member.ready ? `${phase} for ${duration(1000 * member.phase_age_s)}` : "takes nothing new");
  const all = member.window_tokens;
  node.fill.style.width = all ? `${Math.max(2, 100 * (1 - member.left_tokens / all))}%` : "0";
  node.title = member.left_tokens
    ? `Prefill window: ${whole(member.left_tokens)} of ${whole(all)} prompt tokens left, ${duration(1000 * member.left_s)}`
    : "No prompts wait for prefill.";
  setText(
    node.left,
    member.left_tokens
      ? `${whole(member.left_tokens)} of ${whole(all)} tokens left`
      : "no prompts to compute",
  );
  setText(node.slack, `${plural(member.sequences, "sequence")}, ${slackWords(member.slack_s)}`);
  setText(node.share, roles ? `${Math.round(100 * member.share)} % prefill` : "");
  node.share.title = roles ? member.share_reason : "";
}

/** Saved TPOT: how far the decoding sequences are ahead of the pace that they were promised. */
function slackWords(seconds) {
  if (seconds === null) return "none decodes";
  return seconds < 0 ? `late by ${duration(-1000 * seconds)}` : `slack ${duration(1000 * seconds)}`;
}
