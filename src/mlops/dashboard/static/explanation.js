// Why an answer is what it is: how much each field moved it away from the average answer.

import { contributions } from "./charts.js";
import { absent, amount, h, number, words } from "./dom.js";

/** Draw an explanation as `POST /explain` gives it, or say in words why there is none. */
export function explanation(found, reason, schema, inputs) {
  if (!found) return absent(reason || "No explanation is offered by this server.");
  const units = Object.fromEntries(schema.fields.map((field) => [field.name, field.unit]));
  const probability = found.unit === "probability";
  const say = (value) => (probability ? `${(100 * value).toFixed(1)} %` : amount(value, found.unit));
  const items = Object.entries(found.contributions).map(([name, value]) => ({
    name: words(name), value, given: amount(inputs[name], units[name]),
  }));
  const what = words(found.explains);
  return h("div", {},
    h("p", { class: "from" }, `${what[0].toUpperCase()}${what.slice(1)}: ${say(found.prediction)}. On average it is ${say(found.base_value)}; each field moves it by`),
    contributions("What each field adds to the average answer", items, (value) => `${value < 0 ? "" : "+"}${say(value)}`),
    h("p", { class: "note" }, `Shapley values (${words(found.method)}); they add up to the answer. ${number(items.length)} fields of version ${found.model_version}.`));
}
