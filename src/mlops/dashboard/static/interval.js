// Between which values the truth may lie, as the version that made a prediction has it.

import { getOr } from "./api.js";
import { amount, h, number } from "./dom.js";

/** Ask for the interval of a logged prediction, and say it in words; nothing of a classification. */
export async function interval(one, schema, id) {
  if (schema.task !== "regression") return null;
  const [found, reason] = await getOr(`${one.routes}/predictions/${encodeURIComponent(id)}?interval=true`);
  if (!found?.interval) return h("p", { class: "hint" }, reason || "This server gives no intervals.");
  const { low, high, coverage, capped } = found.interval;
  const more = capped ? " or more: training values were cut off there" : "";
  return h("p", { class: "interval" }, `In ${number(100 * coverage)} % of such cases the truth is ${amount(low, schema.target.unit)} to ${amount(high, schema.target.unit)}${more}.`);
}
