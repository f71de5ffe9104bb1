// One prediction's whole story: what was asked and answered, by which version, why, and the truth.

import { get, getOr, root } from "./api.js";
import { placed, strip } from "./charts.js";
import { absent, amount, badge, h, panel, table, when, words } from "./dom.js";
import { explanation } from "./explanation.js";
import { interval } from "./interval.js";

function chain(row) {
  const lineage = row.lineage || {};
  const entries = {
    version: `${row.model_version}${lineage.champion ? " (answers now)" : " (does not answer any more)"}`,
    candidate: lineage.candidate,
    bundle: row.bundle,
    sealed: lineage.sealed_utc && when(lineage.sealed_utc),
    run: lineage.run_id,
    commit: lineage.commit,
    "data fingerprint": lineage.data_fingerprint,
    "data origin": lineage.data_origin,
  };
  return h("dl", { class: "pairs" }, Object.entries(entries).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value || "not known here")]));
}

export async function prediction(main, one) {
  const id = new URLSearchParams(location.search).get("id") || "";
  const schema = await get(`${one.routes}/schema`);
  const [row, gone] = await getOr(`${one.routes}/predictions/${encodeURIComponent(id)}`);
  if (!row) {
    main.append(absent(gone));
    return;
  }
  const unit = schema.task === "regression" ? schema.target.unit : "";
  const inputs = schema.fields.map((each) => {
    const value = row.inputs[each.name];
    const shape = each.quantiles ? strip(each.quantiles, words(each.name)) : null;
    shape?.set(value);
    return [words(each.name), amount(value, each.unit), shape ? shape.element : "", placed(each.quantiles, value)];
  });
  main.append(
    h("div", { class: "sides" }, h("section", { class: "panel answer", "aria-label": "Answer" },
      h("p", { class: "big" }, amount(row.prediction, unit)),
      await interval(one, schema, row.prediction_id),
      h("p", { class: "faint" }, `${words(schema.target.name)}, version ${row.model_version}, ${when(row.timestamp)}`),
      h("p", { class: "faint mono" }, row.prediction_id),
      probabilities(row.probabilities), warnings(row.warnings)),
    panel("truth", "Truth", null, await truth(one, row, schema, unit))),
    h("div", { class: "sides" }, panel("why", "Explanation", null, await why(one, row, schema)), panel("lineage", "Where it comes from", null, chain(row))),
    panel("inputs", "Inputs", "Each value among those that training saw.", table("Inputs, field by field", ["Field", "Value", "Among training", "Place"], inputs, { numeric: [1] })),
    h("p", {}, h("a", { href: `${root}/dashboard/${one.name}/predictions` }, "All predictions")));
}

/** By the bundle of the version that made it, whichever answers now. */
async function why(one, row, schema) {
  const [found, reason] = await getOr(`${one.routes}/predictions/${encodeURIComponent(row.prediction_id)}?explain=true`);
  return explanation(found?.explanation, reason, schema, row.inputs);
}

async function truth(one, row, schema, unit) {
  const [found, reason] = await getOr(`${one.routes}/predictions?search=${encodeURIComponent(row.prediction_id)}&limit=1`);
  const told = found?.predictions[0]?.actual;
  if (told === null || told === undefined) return absent(reason || "No truth has come for this prediction: POST /feedback takes it.");
  if (schema.task !== "regression") {
    const label = typeof told === "number" ? schema.target.labels[told] : told;
    return h("div", {}, h("p", { class: "medium" }, label), h("p", {}, label === row.prediction ? badge("good", "✓ as predicted") : badge("bad", "✕ predicted otherwise")));
  }
  const error = row.prediction - told;
  return h("div", {}, h("p", { class: "medium" }, amount(told, unit)),
    h("p", {}, `Predicted ${error < 0 ? "too low" : "too high"} by ${amount(Math.abs(error), unit)}.`));
}

export function probabilities(stated) {
  if (!stated) return null;
  return h("ul", { class: "probabilities" }, Object.entries(stated).map(([label, share]) =>
    h("li", {}, h("span", {}, label), h("meter", { min: 0, max: 1, value: share, "aria-label": `Probability of ${label}` }), h("span", {}, `${(100 * share).toFixed(1)} %`))));
}

export function warnings(given) {
  if (!given.length) return h("p", { class: "calm" }, "✓ No warnings: every value lies within what training saw.");
  return h("ul", { class: "warnings" }, given.map((text) => h("li", {}, badge("warn", "▲ warning"), " ", text)));
}
