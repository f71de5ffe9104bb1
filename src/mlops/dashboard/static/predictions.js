// The log: search and filter it, a bounded stretch at a time; the address keeps what was asked.

import { get, root, Trouble } from "./api.js";
import { absent, amount, badge, h, number, say, table, when, words } from "./dom.js";
import { field, onAsked } from "./filters.js";

const FIELDS = ["search", "since", "until", "version", "warned", "told", "min", "max"];

function filters(schema, asked) {
  const input = (name, attributes) => h("input", { value: asked.get(name) || "", ...attributes });
  const either = (name, yes, no) => h("select", {},
    [["", "either"], ["true", yes], ["false", no]].map(([value, text]) => h("option", { value, selected: value === (asked.get(name) || "") }, text)));
  const numeric = schema.task === "regression";
  return h("form", { class: "panel filters", role: "search", "aria-label": "Search the predictions" },
    field("search", "Search", input("search", { type: "search", placeholder: numeric ? "id, input or warning" : "id, label, input or warning", maxlength: 200 })),
    field("since", "From", input("since", { type: "datetime-local", step: 1 })),
    field("until", "Before", input("until", { type: "datetime-local", step: 1 })),
    field("version", "Version", input("version", { type: "number", min: 1, step: 1, inputmode: "numeric" })),
    field("warned", "Warnings", either("warned", "with", "without")),
    field("told", "Truth", either("told", "has come", "has not")),
    numeric ? field("min", "Least", input("min", { type: "number", step: "any" })) : null,
    numeric ? field("max", "Greatest", input("max", { type: "number", step: "any" })) : null,
    h("div", { class: "buttons" }, h("button", { type: "submit" }, "Search"), h("button", { type: "reset", class: "quiet" }, "Clear")));
}

/** What the form says, as the route wants it: moments of this clock become UTC. */
function query(form) {
  const wanted = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (value === "") continue;
    wanted.set(name, name === "since" || name === "until" ? new Date(value).toISOString() : value);
  }
  return wanted;
}

function truth(row, schema) {
  if (row.actual === null) return "";
  if (schema.task === "regression") return amount(row.actual, schema.target.unit);
  const label = typeof row.actual === "number" ? schema.target.labels[row.actual] : row.actual;
  return h("span", {}, label, label === row.prediction ? h("span", { class: "right" }, " ✓") : h("span", { class: "wrong" }, " ✕"));
}

function rows(predictions, one, schema) {
  return predictions.map((row) => [
    h("a", { href: `${root}/dashboard/${one.name}/prediction?id=${encodeURIComponent(row.prediction_id)}` }, when(row.timestamp)),
    h("strong", {}, amount(row.prediction, schema.task === "regression" ? schema.target.unit : "")),
    truth(row, schema),
    row.warnings.length ? h("span", { title: row.warnings.join("\n") }, badge("warn", `▲ ${row.warnings.length}`)) : "",
    String(row.model_version),
    h("span", { class: "inputs" }, schema.fields.map((each) => h("span", {}, h("span", { class: "faint" }, `${words(each.name)} `), number(row.inputs[each.name], 4)))),
  ]);
}

export async function predictions(main, one) {
  const schema = await get(`${one.routes}/schema`);
  const form = filters(schema, new URLSearchParams(location.search));
  const status = h("p", { class: "status", role: "status" }, "");
  const found = h("div", {});
  const older = h("button", { type: "button", hidden: true }, "Look at older ones");
  main.append(form, status, found, older);
  let shown = [];
  let wanted = query(form);
  let before = null;
  let examined = 0;

  async function look() {
    const asked = new URLSearchParams(wanted);
    if (before) asked.set("before", before);
    form.setAttribute("aria-busy", "true");
    try {
      const answer = await get(`${one.routes}/predictions?${asked}`);
      shown = [...shown, ...answer.predictions];
      examined += answer.examined;
      before = answer.before;
      const end = before ? "older ones have not been looked at" : "these are all";
      say(status, `${number(shown.length)} found, ${number(examined)} examined: ${end}.`);
      older.hidden = !before;
      found.replaceChildren(shown.length
        ? table("Predictions, the newest first", ["When", "Prediction", "Truth", "Warnings", "Version", "Inputs"], rows(shown, one, schema), { numeric: [1, 2], wide: true })
        : absent(before ? "None of those examined fits." : "No prediction in the log fits."));
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      say(status, "");
      found.replaceChildren(absent(trouble.message));
      older.hidden = true;
    } finally {
      form.removeAttribute("aria-busy");
    }
  }

  onAsked(form, FIELDS, () => {
    [shown, before, examined] = [[], null, 0];
    wanted = query(form);
    look();
  });
  older.addEventListener("click", look);
  await look();
}
