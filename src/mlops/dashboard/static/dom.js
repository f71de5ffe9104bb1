// Elements and words. Every text is set as text: nothing that comes from a server becomes HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Return an HTML element; strings among the children become text. */
export const h = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);

/** The same for SVG. */
export const s = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

/** Set a text only if it changed: what did not change is not drawn, and not read out again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A section with a heading; `id` names it for screen readers and for links. */
export function panel(id, title, lead, ...children) {
  return h("section", { class: "panel", id, "aria-labelledby": `${id}-title` },
    h("div", { class: "panel-head" }, h("h2", { id: `${id}-title` }, title),
      lead ? h("p", { class: "lead" }, lead) : null),
    ...children);
}

/** A table that scrolls by itself where it is too wide; cells are text or elements. */
export function table(caption, head, rows, { numeric = [], wide = false } = {}) {
  const align = (index) => (numeric.includes(index) ? "number" : null);
  return h("div", { class: wide ? "scrolls wide" : "scrolls", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, head.map((cell, index) => h("th", { scope: "col", class: align(index) }, cell)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, index) =>
        index ? h("td", { class: align(index) }, cell) : h("th", { scope: "row" }, cell)))))));
}

/** Words in place of what cannot be shown, and why. */
export const absent = (text) => h("p", { class: "absent" }, text);

export const badge = (kind, text) => h("span", { class: `badge ${kind}` }, text);

// --- numbers and times, as people read them

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A number with as many digits as matter; a dash for none. */
export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size >= 1000) return grouped.format(value);
  if (Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(Math.max(digits, size >= 100 ? 4 : digits))));
}

export const percent = (share, digits = 1) =>
  share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`;

export const milliseconds = (value) =>
  value === null || value === undefined ? "–" : `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;

/** A value with its unit; multiples of dollars are multiplied out. */
export function amount(value, unit) {
  if (typeof value !== "number") return String(value);
  const dollars = /^([\d,]+) dollars$/.exec(unit || "");
  if (!dollars) return unit ? `${number(value, 4)} ${unit}` : number(value, 4);
  const whole = value * Number(dollars[1].replaceAll(",", ""));
  return `${whole < 0 ? "−" : ""}$${grouped.format(Math.abs(Number(whole.toPrecision(4))))}`;
}

export const words = (name) => String(name).replaceAll("_", " ");

export const clock = (moment) => new Date(moment).toLocaleTimeString("en-GB");

export const when = (moment) => {
  const date = new Date(moment);
  return `${date.toLocaleDateString("en-CA")} ${date.toLocaleTimeString("en-GB")}`;
};

export const counted = (count, one, many = `${one}s`) =>
  `${grouped.format(count)} ${count === 1 ? one : many}`;
