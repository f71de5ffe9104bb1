// Drift: each column's live values beside those of training, with the verdict.

import { getOr } from "./api.js";
import { histogramPair } from "./charts.js";
import { absent, h, number, panel, words } from "./dom.js";
import { findings, verdictBadge } from "./findings.js";

const ORDER = { alarm: 0, "cannot tell": 1, ok: 2 };

/** The panel of a use case's drift: columns that changed first. */
export async function drift(one, schema) {
  const [found, reason] = await getOr(`${one.routes}/drift`, "This server does not watch for drift.");
  if (!found) return panel("drift", "Drift", null, absent(reason));
  const told = new Map(found.findings.map((finding) => [finding.subject, finding]));
  const columns = Object.entries(found.columns).sort(([a], [b]) => ORDER[told.get(a)?.verdict] - ORDER[told.get(b)?.verdict]);
  const others = found.findings.filter((finding) => !(finding.subject in found.columns));
  const lead = `${number(found.rows)} rows of ${found.window} against ${number(found.training_rows)} of training`;
  return panel("drift", "Drift", lead,
    findings(others.slice(0, 2)),
    columns.length ? h("p", { class: "legend drift-legend" }, h("span", { class: "key fills" }, "training"), h("span", { class: "key second" }, "live")) : null,
    h("div", { class: "drifts" }, columns.map(([name, shares]) => column(schema, name, shares, told.get(name)))),
    found.guarantee ? h("p", { class: "note" }, found.guarantee) : null);
}

function column(schema, name, shares, finding) {
  const unit = name === "prediction" ? schema.target.unit : schema.fields.find((field) => field.name === name)?.unit;
  const bounds = shares.bounds || [];
  const ends = shares.values ? [shares.values[0], shares.values.at(-1)] : [number(bounds[0]), number(bounds.at(-1))];
  return h("article", { class: "drift" },
    h("h3", {}, words(name), verdictBadge(finding?.verdict)),
    histogramPair(words(name), shares.reference, shares.window, ["training", "live"], ends).element,
    h("p", {}, finding?.says || "", unit ? ` (${unit})` : ""));
}
