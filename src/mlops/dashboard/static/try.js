// Try it: a form made from the schema. Sliders stay within what training saw, numbers within limits.

import { get, post, Trouble } from "./api.js";
import { percentile, placed, strip } from "./charts.js";
import { absent, amount, h, number, panel, say, words } from "./dom.js";
import { explanation } from "./explanation.js";
import { interval } from "./interval.js";
import { probabilities, warnings } from "./prediction.js";

/** Values at the quantiles of training: whole where nearly all are, else to four digits. */
function rounding(quantiles) {
  const whole = quantiles.filter(Number.isInteger).length > 0.6 * quantiles.length;
  return (value) => (whole ? Math.round(value) : Number(value.toPrecision(5)));
}

/** One field: number and slider say the same. The slider goes by percentiles of training. */
function control(field) {
  const id = `field-${field.name}`;
  const text = h("input", { id, name: field.name, type: "number", step: "any", min: field.low, max: field.high, required: true, "aria-describedby": `${id}-place` });
  const place = h("span", { id: `${id}-place`, class: "place" }, "");
  const shape = field.quantiles ? strip(field.quantiles, words(field.name)) : null;
  const round = field.quantiles ? rounding(field.quantiles) : (value) => value;
  const slider = field.quantiles ? h("input", { type: "range", min: 0, max: 100, step: 0.5, "aria-label": `${words(field.name)}, by percentile of the training rows` }) : null;
  const spot = (share) => {
    const at = (share / 100) * (field.quantiles.length - 1);
    const low = Math.floor(at);
    const high = Math.min(low + 1, field.quantiles.length - 1);
    return Math.min(field.quantiles.at(-1), Math.max(field.quantiles[0], round(field.quantiles[low] + (at - low) * (field.quantiles[high] - field.quantiles[low]))));
  };
  function settle() {
    const value = text.valueAsNumber;
    if (Number.isNaN(value)) {
      say(place, "a number is needed");
      return;
    }
    say(place, placed(field.quantiles, value));
    shape?.set(value);
    slider?.setAttribute("aria-valuetext", `${number(value, 5)} ${field.unit}, ${placed(field.quantiles, value)}`);
  }
  function set(value) {
    text.value = String(value);
    if (slider) slider.value = String(Math.min(100, Math.max(0, percentile(field.quantiles, value))));
    settle();
  }
  text.addEventListener("input", () => {
    if (slider && !Number.isNaN(text.valueAsNumber)) slider.value = String(Math.min(100, Math.max(0, percentile(field.quantiles, text.valueAsNumber))));
    settle();
  });
  slider?.addEventListener("input", () => {
    text.value = String(spot(Number(slider.value)));
    settle();
  });
  const seen = field.seen ? `training: ${number(field.seen[0], 4)} to ${number(field.seen[1], 4)}; ` : "";
  return {
    name: field.name,
    value: () => text.valueAsNumber,
    set,
    element: h("div", { class: "field tried" },
      h("label", { for: id }, words(field.name), h("span", { class: "faint" }, ` ${field.unit}`)),
      text, h("div", { class: "slide" }, shape ? shape.element : null, slider),
      h("p", { class: "hint" }, place, h("span", { class: "faint" }, ` · ${seen}allowed: ${number(field.low, 4)} to ${number(field.high, 4)}`))),
  };
}

export async function tryIt(main, one) {
  const schema = await get(`${one.routes}/schema`);
  const controls = schema.fields.map(control);
  const names = Object.keys(schema.examples);
  const take = (name) => controls.forEach((each) => each.set(schema.examples[name][each.name]));
  const examples = h("select", { id: "example" }, names.map((name) => h("option", { value: name }, name)));
  examples.addEventListener("change", () => take(examples.value));
  const result = h("div", { class: "result", "aria-live": "polite" }, absent("Nothing has been asked yet."));
  const button = h("button", { type: "submit" }, "Predict");
  const form = h("form", { class: "panel try-form" },
    h("div", { class: "field" }, h("label", { for: "example" }, "Begin with an example"), examples),
    h("div", { class: "fields" }, controls.map((each) => each.element)),
    h("div", { class: "buttons sticky" }, button, h("span", { class: "faint" }, "Logged, as every prediction is, under the client “dashboard”.")));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const inputs = Object.fromEntries(controls.map((each) => [each.name, each.value()]));
    button.disabled = true;
    try {
      const answer = await post(`${one.routes}/predict`, inputs);
      result.replaceChildren(await shownAnswer(one, schema, inputs, answer));
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      result.replaceChildren(absent(trouble.message));
    } finally {
      button.disabled = false;
    }
  });
  take(names[0]);
  main.append(h("div", { class: "try" }, form, h("section", { class: "panel", "aria-labelledby": "answer-title" }, h("h2", { id: "answer-title" }, "Answer"), result)));
}

async function shownAnswer(one, schema, inputs, answer) {
  const regression = schema.task === "regression";
  const value = regression ? answer[schema.target.name] : answer.predicted_label;
  const parts = [h("p", { class: "big" }, amount(value, regression ? schema.target.unit : "")),
    h("p", { class: "faint" }, `${words(schema.target.name)}, version ${answer.model_version}`),
    await interval(one, schema, answer.prediction_id), probabilities(answer.probabilities)];
  if (regression && schema.prediction.quantiles) {
    const shape = strip(schema.prediction.quantiles, "Answers to the training rows");
    shape.set(value);
    parts.push(shape.element, h("p", { class: "hint" }, `${placed(schema.prediction.quantiles, value).replace("rows", "rows’ answers")}.`));
  }
  parts.push(h("h3", {}, "Warnings"), warnings(answer.warnings), h("h3", {}, "Explanation"), await why(one, schema, inputs));
  return h("div", {}, parts);
}

/** Ask why; that is recorded nowhere. */
async function why(one, schema, inputs) {
  try {
    return explanation(await post(`${one.routes}/explain`, inputs), null, schema, inputs);
  } catch (trouble) {
    if (!(trouble instanceof Trouble)) throw trouble;
    return explanation(null, trouble.status === 404 ? null : trouble.message, schema, inputs);
  }
}
