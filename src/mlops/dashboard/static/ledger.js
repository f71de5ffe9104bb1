// The ledger: every decision with its evidence, newest first, and whether the chain is whole.

import { get, root, Trouble } from "./api.js";
import { absent, badge, counted, h, number, say, table, when, words } from "./dom.js";
import { field, kept, onAsked } from "./filters.js";

const ACTIONS = {
  promote: ["good", "▲ promoted"], rollback: ["bad", "▼ rolled back"], keep: ["warn", "✕ kept out"], train: ["", "trained"],
  retrain: ["", "retraining began"], retrained: ["", "retraining ended"], shadow: ["", "shadow begun"], ab: ["", "A/B begun"], share: ["", "share changed"],
  end: ["", "experiment ended"],
};
const OUTCOMES = { pass: ["good", "✓ pass"], fail: ["bad", "✕ fail"] };
const FIELDS = ["search", "action", "version"];

function filters(asked, actions) {
  const chosen = asked.get("action") || "";
  return h("form", { class: "panel filters", role: "search", "aria-label": "Search the ledger" },
    field("search", "Search", h("input", { type: "search", value: asked.get("search") || "", placeholder: "reason, rule, who or hash", maxlength: 200 })),
    field("action", "Decision", h("select", {}, ["", ...new Set([...actions, chosen].filter(Boolean))].map((value) =>
      h("option", { value, selected: value === chosen }, value ? words(value) : "all")))),
    field("version", "Version", h("input", { type: "number", value: asked.get("version") || "", min: 0, step: 1, inputmode: "numeric" })),
    h("div", { class: "buttons" }, h("button", { type: "submit" }, "Search"), h("button", { type: "reset", class: "quiet" }, "Clear")));
}

function chainState(chain) {
  const state = chain.whole ? badge("good", "✓ whole") : badge("bad", "✕ broken");
  const told = chain.whole
    ? [`The chain of hashes was followed over ${counted(chain.lines, "line")}: none was changed, removed or put in. `,
      chain.lines ? ["The last is ", h("span", { class: "mono" }, chain.head.slice(0, 12)), "."] : null]
    : [h("strong", {}, `${chain.trouble}. `), chain.line ? `Shown are the lines before line ${chain.line}; what follows cannot be trusted. ` : "",
      "See it with: ", h("span", { class: "mono" }, "mlops ledger verify")];
  return h("div", { class: "verdict chain" }, state, h("p", { class: "sentence" }, told));
}

const shown = (value) => (value === null ? "–" : typeof value === "number" ? number(value, 4) : typeof value === "object" ? JSON.stringify(value) : String(value));

const pairs = (entries) => h("dl", { class: "pairs" }, entries.map(([name, value]) => [h("dt", {}, words(name)), h("dd", {}, shown(value))]));

/** What a decision rested on: what gates said as a table, anything else name by name. */
function evidence(one) {
  const items = one.evidence;
  const gates = items.filter((item) => "gate" in item);
  const others = items.filter((item) => !("gate" in item));
  return [
    gates.length ? table(`What the gates said, line ${one.id}`, ["Gate", "Outcome", "Because"], gates.map((item) => [
      item.gate, badge(...(OUTCOMES[item.outcome] || ["unsure", `? ${item.outcome}`])), item.says])) : null,
    others.map((item) => pairs(Object.entries(item).flatMap(([name, value]) =>
      (value && typeof value === "object" && !Array.isArray(value) ? Object.entries(value).map(([inner, one]) => [`${name} ${inner}`, one]) : [[name, value]])))),
  ];
}

function about(one) {
  if (!one.version) return "";
  const version = `version ${one.version}`;
  if (one.previous === null || one.previous === one.version || one.action === "train") return version;
  return `${version} ${{ promote: "over", rollback: "again, after" }[one.action] || "against"} version ${one.previous}`;
}

/** One line of the ledger; `named` says of which use case it is. */
function decision(one, named) {
  return h("li", { class: "decision" },
    h("p", { class: "decided" }, badge(...(ACTIONS[one.action] || ["", words(one.action)])), " ",
      h("strong", {}, [named, about(one)].filter(Boolean).join(" ")),
      h("span", { class: "faint" }, h("time", { datetime: one.decided_utc }, when(one.decided_utc)),
        one.decided_by ? ` · ${one.decided_by}` : "", one.rule ? ` · rule ${one.rule}` : "", ` · line ${one.id}`)),
    h("p", { class: "reason" }, one.reason || "No reason was given."),
    one.evidence.length ? h("details", {}, h("summary", {}, `Evidence (${one.evidence.length})`), evidence(one),
      h("p", { class: "note" }, "Hash of the line ", h("span", { class: "mono" }, one.hash))) : null);
}

export async function ledger(main, one, site) {
  const titles = Object.fromEntries(site.use_cases.map((each) => [each.name, each.title]));
  const path = one ? `${one.routes}/ledger` : "/ledger";
  const asked = new URLSearchParams(location.search);
  const first = await get(`${path}?${new URLSearchParams(FIELDS.filter((name) => asked.get(name)).map((name) => [name, asked.get(name)]))}`);
  const form = filters(asked, first.actions);
  const chain = h("div", {}, chainState(first.chain));
  const status = h("p", { class: "status", role: "status" }, "");
  const list = h("ol", { class: "decisions" });
  const none = h("div", {});
  const older = h("button", { type: "button" }, "Show older ones");
  main.append(chain, form, status, h("section", { class: "panel", "aria-label": "Decisions" }, list, none), older);
  let before = null;

  function show(answer, more) {
    const items = answer.decisions.map((each) => decision(each, one ? "" : titles[each.use_case]));
    if (more) list.append(...items);
    else list.replaceChildren(...items);
    chain.replaceChildren(chainState(answer.chain));
    before = answer.before;
    older.hidden = !before;
    const decided = answer.actions.length > 0;
    list.hidden = !list.children.length;
    none.replaceChildren(...(list.children.length ? [] : [absent(decided ? "No line fits."
      : `Nothing has been decided yet: mlops train ${one ? one.name : site.use_cases[0].name} --promote makes and promotes the first version.`)]));
    say(status, `${counted(answer.found, "line fits", "lines fit")}, ${number(list.children.length)} shown.`);
  }

  async function look(more) {
    const wanted = kept(form);
    if (more) wanted.set("before", before);
    try {
      show(await get(`${path}?${wanted}`), more);
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      say(status, trouble.message);
    }
  }

  onAsked(form, FIELDS, () => look(false));
  older.addEventListener("click", () => look(true));
  show(first, false);
  if (one) main.append(h("p", {}, h("a", { href: `${root}/dashboard/ledger` }, "The ledger of all use cases")));
}
