// A map of points within an outline: colour is a value, and a table says the same in words.

import { figure } from "./charts.js";
import { h, s, table } from "./dom.js";

const STEPS = 9;

/** Where the value falls among the steps of its colours; both ends are open. */
const step = (value, low, high) => Math.min(STEPS - 1, Math.max(0, Math.floor(((value - low) / (high - low || 1)) * STEPS)));

/**
 * `points` are [longitude, latitude, value]. `palette` is "run" (dark to light) or "split" (blue,
 * grey, orange), from `low` to `high`; values are written by `format`.
 */
export function map(title, points, outline, { palette, low, high, format, ends, note }) {
  const xs = [...outline.map(([east]) => east), ...(outline.length ? [] : points.map(([east]) => east))];
  const ys = [...outline.map(([, north]) => north), ...(outline.length ? [] : points.map(([, north]) => north))];
  const [west, east, south, north] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  // A degree of longitude is shorter than one of latitude: by the cosine of the latitude between.
  const shrink = Math.cos((((south + north) / 2) * Math.PI) / 180);
  const legend = h("span", { class: "legend" }, h("span", { class: "faint" }, ends[0]),
    s("svg", { class: "ramp", viewBox: `0 0 ${STEPS} 1`, preserveAspectRatio: "none", "aria-hidden": "true" },
      Array.from({ length: STEPS }, (_, index) => s("rect", { class: `${palette}${index} ramp-step`, x: index, width: 1.02, height: 1 }))),
    h("span", { class: "faint" }, ends[1]));
  const chart = figure(title, (svg, width, height) => {
    const size = Math.min((width - 16) / ((east - west) * shrink), (height - 16) / (north - south));
    const left = (width - (east - west) * shrink * size) / 2;
    const x = (at) => left + (at - west) * shrink * size;
    const y = (at) => 8 + (north - at) * size;
    if (outline.length) svg.append(s("path", { class: "outline", d: `M${outline.map(([lon, lat]) => `${x(lon).toFixed(1)},${y(lat).toFixed(1)}`).join("L")}Z` }));
    const groups = Array.from({ length: STEPS }, () => []);
    for (const [lon, lat, value] of points) groups[step(value, low, high)].push(`M${x(lon).toFixed(1)},${y(lat).toFixed(1)}h.01`);
    groups.forEach((group, index) => group.length && svg.append(s("path", { class: `points ${palette}${index}`, d: group.join("") })));
  }, { height: 430, legend, note, label: `${title}. The table below has the values.` });
  return chart.element;
}

/** The same in words: the strongest values, where they lie. */
export function mapTable(caption, points, valueName, format, count = 10) {
  const strongest = [...points].sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, count);
  return h("details", {}, h("summary", {}, caption),
    table(caption, ["Longitude", "Latitude", valueName], strongest.map(([lon, lat, value]) => [lon.toFixed(2), lat.toFixed(2), format(value)]), { numeric: [1, 2] }));
}
