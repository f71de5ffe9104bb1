// Quality over time, where the truth has come, beside what it was when it was sealed.

import { getOr } from "./api.js";
import { quality } from "./charts.js";
import { absent, h, number, panel, table, when, words } from "./dom.js";
import { findings, verdictBadge } from "./findings.js";

const WINDOWS = { "24h": "24 hours", "7d": "7 days", "30d": "30 days" };
const HOUR = 3600;

const score = (one) => (one ? `${number(one.value)}${Number.isFinite(one.low) ? ` (${number(one.low)} to ${number(one.high)})` : ""}` : "–");

/** The panel of a use case's quality, for a stretch of time that is chosen. */
export async function performance(one, schema) {
  const place = h("div", {});
  const choose = h("select", { id: "window" }, Object.entries(WINDOWS).map(([value, text]) => h("option", { value }, text)));
  async function show() {
    const [found, reason] = await getOr(`${one.routes}/performance?window=${choose.value}`, "This server keeps no truth: quality cannot be told.");
    place.replaceChildren(...(found ? drawn(found) : [absent(reason)]));
  }
  choose.addEventListener("change", show);
  await show();
  return panel("quality", "Quality over time", null, h("p", { class: "chosen" }, h("label", { for: "window" }, "The last"), choose), place);
}

function drawn(found) {
  const { metric } = found;
  const mine = found.series.filter((point) => point.model_version === found.model_version && point.scores[metric]);
  const hourly = found.window.step_seconds === HOUR;
  const points = mine.map((point) => ({ ...point.scores[metric], label: hourly ? when(point.start).slice(5, 16) : when(point.start).slice(5, 10) }));
  const sealed = found.versions.find((each) => each.model_version === found.model_version)?.sealed;
  const share = found.predictions ? `${((100 * found.truths) / found.predictions).toFixed(1)} %` : "none";
  return [
    h("p", { class: "lead" }, `Version ${found.model_version}: the truth has come for ${number(found.truths)} of ${number(found.predictions)} predictions (${share}).`),
    points.length
      ? quality(words(metric), points, { reference: sealed?.scores[metric]?.value ?? null, name: words(metric) }).element
      : absent("No truth has come for predictions of this time: POST /feedback takes it."),
    within(found),
    found.findings.length ? findings(found.findings) : null,
    h("p", { class: "estimate" }, verdictBadge({ given: "ok", muted: "alarm" }[found.estimate.state]), " ", h("strong", {}, "Estimate without truth"), " ",
      found.estimate.scores[metric] ? `${words(metric)} ${score(found.estimate.scores[metric])}: ` : "", found.estimate.says),
    h("div", { class: "pair" }, Object.entries(found.slices).map(([name, slice]) => bands(name, slice, found))),
  ].filter(Boolean);
}

/** How many truths lay within the interval of their prediction. */
function within(found) {
  const met = found.intervals.find((each) => each.model_version === found.model_version);
  if (!met) return null;
  const { value, low, high } = met.coverage;
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const range = low === null ? "" : ` (${percent(low)} to ${percent(high)})`;
  return h("p", {}, h("strong", {}, "Intervals"), ` ${percent(value)}${range} of ${number(met.rows)} truths lay within theirs`,
    met.promised ? `; ${percent(met.promised)} is promised.` : ".");
}

function bands(name, slice, found) {
  const rows = slice.bands.filter((band) => band.model_version === found.model_version);
  if (!rows.length) return null;
  const metric = rows[0].scores[found.metric] ? found.metric : Object.keys(rows[0].scores)[0];
  return h("div", {}, h("h3", {}, slice.description || words(name)),
    table(`${words(name)}: ${words(metric)}`, [words(name), "Rows", words(metric), "When sealed"],
      rows.map((band) => [band.band, number(band.rows), score(band.scores[metric]), score(band.sealed?.scores[metric])]), { numeric: [1, 2, 3] }));
}
