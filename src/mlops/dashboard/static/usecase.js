// One use case: how it does now, and how good it is.

import { get, getOr, live } from "./api.js";
import { scatter } from "./charts.js";
import { absent, amount, h, number, panel, table, words } from "./dom.js";
import { drift } from "./drift.js";
import { map, mapTable } from "./map.js";
import { liveParts } from "./overview.js";
import { performance } from "./performance.js";

export async function useCase(main, one) {
  const parts = liveParts(170);
  const trouble = h("div", {});
  const sections = h("div", {});
  main.append(trouble, parts.state,
    h("section", { class: "panel", "aria-label": "Now" }, parts.numbers, parts.charts),
    sections,
    h("div", { class: "sides" },
      panel("versions", "Versions", null, parts.versions),
      panel("alerts", "Open alerts", null, parts.alerts)));
  const watching = live(() => get(`${one.routes}/overview`), ({ use_cases: [seen] }) => {
    trouble.replaceChildren();
    parts.set(seen);
  }, (message) => trouble.replaceChildren(absent(message)));

  const [schema, noSchema] = await getOr(`${one.routes}/schema`);
  if (!schema) {
    sections.append(absent(noSchema));
    return watching;
  }
  const [diagnosis, noDiagnosis] = await getOr(`${one.routes}/diagnosis`);
  const [told] = await getOr(`${one.routes}/predictions?told=true&limit=1000`);
  const truths = told ? told.predictions.filter((row) => row.actual !== null && row.actual !== undefined) : [];
  const sides = h("div", { class: schema.coordinates ? "sides" : "" }, accuracy(schema, truths, diagnosis, noDiagnosis));
  sections.append(sides);
  if (schema.coordinates) sides.append(await where(one, schema, truths, diagnosis));
  sections.append(await performance(one, schema), await drift(one, schema));
  return watching;
}

/** A choice between views of one thing; each is drawn when it is chosen, the first at once. */
function choice(name, legend, views) {
  const place = h("div", {});
  const draw = (view) => place.replaceChildren(...[view()].flat());
  const names = Object.keys(views);
  draw(views[names[0]]);
  const choose = names.length < 2 ? null : h("fieldset", { class: "choice" }, h("legend", { class: "unseen" }, legend),
    names.map((title, index) => h("label", {}, h("input", {
      type: "radio", name, checked: index === 0, onchange: () => draw(views[title]),
    }), title)));
  return [choose, place];
}

function accuracy(schema, truths, diagnosis, reason) {
  const views = {};
  if (truths.length) views[`Live: the newest ${number(truths.length)} with truth`] = () => pairs(schema, truths);
  if (diagnosis) views[`Held-out rows of training (version ${diagnosis.model_version})`] = () => heldOut(schema, diagnosis);
  if (!Object.keys(views).length) return panel("accuracy", "Predicted against actual", null, absent(reason));
  const [only] = Object.keys(views).length === 1 ? Object.keys(views) : [null];
  return panel("accuracy", "Predicted against actual", only, truths.length ? null : h("p", { class: "note" }, "No truth has come for a logged prediction yet: POST /feedback takes it."),
    ...choice("accuracy", "Which rows", views));
}

function pairs(schema, truths) {
  if (schema.task === "regression") return scatter("", truths.map((row) => [row.actual, row.prediction]), schema.target.unit).element;
  const labels = schema.target.labels;
  const name = (value) => (typeof value === "number" ? labels[value] : value);
  return confusion(labels, labels.map((actual) => labels.map((predicted) =>
    truths.filter((row) => name(row.actual) === actual && row.prediction === predicted).length)));
}

function heldOut(schema, diagnosis) {
  if (diagnosis.confusion_matrix) return confusion(schema.target.labels, diagnosis.confusion_matrix);
  const { actual, predicted } = diagnosis.predicted_vs_actual;
  return scatter("", actual.map((value, index) => [value, predicted[index]]), schema.target.unit).element;
}

function confusion(labels, counts) {
  return table("Rows by actual and predicted class", ["Actual", ...labels.map((label) => `predicted ${label}`)],
    counts.map((line, row) => [labels[row], ...line.map((count, column) =>
      h("span", { class: row === column ? "right" : count ? "wrong" : "faint" }, number(count), row === column ? " ✓" : count ? " ✕" : ""))]),
    { numeric: labels.map((_, index) => index + 1) });
}

/** The map: what was predicted where lately, and where the errors lie. */
async function where(one, schema, truths, diagnosis) {
  const { longitude, latitude, outline } = schema.coordinates;
  const unit = schema.target.unit;
  const [log, reason] = await getOr(`${one.routes}/predictions?limit=1000`);
  const place = (row, value) => [row.inputs[longitude], row.inputs[latitude], value];
  const logged = log ? log.predictions.map((row) => place(row, row.prediction)) : [];
  const known = schema.prediction.quantiles;
  const [low, high] = known ? [known[2], known[98]] : [schema.target.low, schema.target.high];
  const views = {
    Predictions: () => (logged.length
      ? [map(`The newest ${number(logged.length)} predictions`, logged, outline, {
        palette: "run", low, high, ends: [amount(low, unit), amount(high, unit)],
        note: `Each dot is a logged prediction; the darker, the lower its ${words(schema.target.name)}.`,
      }), mapTable("The ten highest as a table", logged, "Predicted", (value) => amount(value, unit))]
      : absent(reason || "Nothing has been predicted yet.")),
  };
  if (truths.length) {
    views["Errors, live"] = () => errorMap(truths.map((row) => place(row, row.prediction - row.actual)), outline, unit, "where the truth has come");
  }
  if (diagnosis?.error_map) {
    const found = diagnosis.error_map;
    views["Errors, held-out rows"] = () => errorMap(found.longitude.map((east, index) => [east, found.latitude[index], -found.residual[index]]), outline, unit, "on the held-out rows of training");
  }
  return panel("map", "On the map", null, ...choice("map", "What the map shows", views));
}

function errorMap(points, outline, unit, whose) {
  const sizes = points.map(([, , error]) => Math.abs(error)).sort((a, b) => a - b);
  const most = sizes[Math.floor(0.95 * (sizes.length - 1))] || 1;
  return [map(`Errors ${whose}`, points, outline, {
    palette: "split", low: -most, high: most, ends: [`${amount(-most, unit)} too low`, `${amount(most, unit)} too high`],
    note: "Blue: predicted too low. Orange: too high. The farthest 5 % share the strongest colours.",
  }), mapTable("The ten largest errors as a table", points, "Predicted − actual", (value) => `${value < 0 ? "" : "+"}${amount(value, unit)}`)];
}
