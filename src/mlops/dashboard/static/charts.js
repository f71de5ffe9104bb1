// Charts as SVG, drawn again when their room changes. Colours are classes, so that themes apply.

import { clock, h, number, s, say } from "./dom.js";

const LEFT = 44;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 22;

/** Round steps of an axis from `low` to `high`, about `count` of them. */
export function ticks(low, high, count = 4) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

/** A figure that calls `draw(svg, width, height)` for its content whenever it must be drawn. */
export function figure(title, draw, { height = 180, label = title, legend = null, note = null } = {}) {
  const svg = s("svg", { role: "img", "aria-label": label, height });
  const frame = h("div", { class: "frame" }, svg);
  let width = 0;
  const redraw = () => {
    if (!width) return;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("width", width);
    svg.replaceChildren();
    draw(svg, width, height);
  };
  new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now === width) return;
    width = now;
    redraw();
  }).observe(frame);
  const element = h("figure", {}, h("figcaption", {}, h("span", { class: "chart-title" }, title), legend), frame,
    note ? h("p", { class: "note" }, note) : null);
  return { element, svg, redraw, describe: (text) => svg.setAttribute("aria-label", text) };
}

function grid(svg, width, height, y, values, format = number) {
  for (const value of values) {
    svg.append(s("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      s("text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)));
  }
}

function bottom(svg, height, x, values, format = number) {
  values.forEach((value, index) => svg.append(s("text", {
    class: "tick",
    x: x(value),
    y: height - 6,
    "text-anchor": index === 0 ? "start" : index === values.length - 1 ? "end" : "middle",
  }, format(value))));
}

/** A path through points, broken where there is no value. */
function path(points) {
  let pen = "M";
  return points.map(([x, y]) => {
    if (y === null || !Number.isFinite(y)) {
      pen = "M";
      return "";
    }
    const step = `${pen}${x.toFixed(1)},${y.toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
}

/**
 * Lines over time. Each mark has a `name`, a `kind` (a class: line, line second, area, bars) and
 * `of`, what it takes of a row. Rows have `start`. The legend says the values at the pointer.
 */
export function series(title, { marks, height, unit = "" }) {
  let rows = [];
  let at = null;
  const keys = marks.map((mark) => h("span", { class: "value" }, ""));
  const moment = h("span", { class: "value faint" }, "");
  const legend = h("span", { class: "legend" }, marks.map((mark, index) =>
    h("span", { class: `key ${mark.kind}` }, mark.name, " ", keys[index])), moment);
  const suffix = unit && ` ${unit}`;
  function read() {
    const row = rows[at ?? rows.length - 1];
    marks.forEach((mark, index) => say(keys[index], row && mark.of(row) !== null ? `${number(mark.of(row))}${suffix}` : "–"));
    say(moment, at !== null && row ? clock(row.start).slice(0, 5) : "");
  }
  const chart = figure(title, (svg, width, tall) => {
    if (!rows.length) return;
    const values = marks.flatMap((mark) => rows.map(mark.of)).filter((value) => value !== null);
    const top = Math.max(...values, 0) || 1;
    const steps = ticks(0, top, 3);
    const step = steps[1] - steps[0] || 1;
    const high = Math.ceil(top / step - 1e-9) * step;
    if (high > steps.at(-1)) steps.push(high);
    const x = scale(0, Math.max(rows.length - 1, 1), LEFT, width - RIGHT);
    const y = scale(0, high, tall - BOTTOM, TOP);
    grid(svg, width, tall, y, steps);
    for (const mark of marks) {
      const points = rows.map((row, index) => [x(index), mark.of(row) === null ? null : y(mark.of(row))]);
      if (mark.kind === "bars") {
        for (const [left, up] of points) if (up !== null && up < y(0)) svg.append(s("line", { class: "bars", x1: left, x2: left, y1: y(0), y2: Math.min(up, y(0) - 4) }));
        continue;
      }
      if (mark.kind === "area") svg.append(s("path", { class: "fill", d: `${path(points)}L${x(rows.length - 1)},${y(0)}L${LEFT},${y(0)}Z` }));
      svg.append(s("path", { class: mark.kind, d: path(points) }));
      points.forEach(([left, up], index) => {
        const alone = up !== null && (points[index - 1]?.[1] ?? null) === null && (points[index + 1]?.[1] ?? null) === null;
        if (alone) svg.append(s("circle", { class: `dot ${mark.kind}`, cx: left, cy: up, r: 2 }));
      });
    }
    if (at !== null) svg.append(s("line", { class: "cross", x1: x(at), x2: x(at), y1: TOP, y2: tall - BOTTOM }));
    const middle = Math.floor((rows.length - 1) / 2);
    bottom(svg, tall, x, [0, middle, rows.length - 1], (index) => clock(rows[index].start).slice(0, 5));
  }, { height, legend });
  const point = (event) => {
    const box = chart.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    at = rows.length ? Math.min(rows.length - 1, Math.max(0, Math.round(share * (rows.length - 1)))) : null;
    read();
    chart.redraw();
  };
  chart.svg.addEventListener("pointermove", point);
  chart.svg.addEventListener("pointerleave", () => {
    at = null;
    read();
    chart.redraw();
  });
  return {
    element: chart.element,
    set: (now) => {
      rows = now;
      read();
      const last = rows.at(-1);
      chart.describe(last ? `${title}. Last: ${marks.map((mark) => `${mark.name} ${number(mark.of(last))}${suffix}`).join(", ")}` : title);
      chart.redraw();
    },
  };
}

/** A value over time with its interval: points have `label`, `value`, `low`, `high`; `reference` is a line. */
export function quality(title, points, { reference = null, unit = "", name = "value" } = {}) {
  return figure(title, (svg, width, height) => {
    const all = points.flatMap((point) => [point.low, point.high, point.value]).concat(reference ?? []).filter(Number.isFinite);
    const spread = (Math.max(...all) - Math.min(...all)) * 0.1 || Math.abs(all[0]) * 0.1 || 1;
    const steps = ticks(Math.min(...all) - spread, Math.max(...all) + spread, 4);
    const y = scale(Math.min(steps[0], ...all), Math.max(steps.at(-1), ...all), height - BOTTOM, TOP);
    const x = scale(0, Math.max(points.length - 1, 1), LEFT + 14, width - RIGHT - 14);
    const place = (index) => (points.length === 1 ? (LEFT + width - RIGHT) / 2 : x(index));
    grid(svg, width, height, y, steps);
    if (reference !== null) {
      svg.append(s("line", { class: "reference", x1: LEFT, x2: width - RIGHT, y1: y(reference), y2: y(reference) }));
    }
    const sure = points.map((point, index) => ({ ...point, at: place(index) })).filter((point) => Number.isFinite(point.low) && Number.isFinite(point.high));
    if (sure.length > 1) {
      const up = sure.map((point) => `${point.at.toFixed(1)},${y(point.high).toFixed(1)}`);
      const down = sure.map((point) => `${point.at.toFixed(1)},${y(point.low).toFixed(1)}`).reverse();
      svg.append(s("path", { class: "band", d: `M${[...up, ...down].join("L")}Z` }));
    }
    svg.append(s("path", { class: "line", d: path(points.map((point, index) => [place(index), Number.isFinite(point.value) ? y(point.value) : null])) }));
    points.forEach((point, index) => {
      if (!Number.isFinite(point.value)) return;
      if (Number.isFinite(point.low)) svg.append(s("line", { class: "whisker", x1: place(index), x2: place(index), y1: y(point.low), y2: y(point.high) }));
      svg.append(s("circle", { class: "dot", cx: place(index), cy: y(point.value), r: 3.2 },
        s("title", {}, `${point.label}: ${number(point.value)} ${unit} (${number(point.low)} to ${number(point.high)})`)));
    });
    const shown = points.length > 2 ? [0, Math.floor((points.length - 1) / 2), points.length - 1] : points.map((_, index) => index);
    bottom(svg, height, place, shown, (index) => points[index].label);
  }, { height: 210, label: `${title}: ${points.map((point) => `${point.label} ${number(point.value)}`).join(", ")}`,
    legend: h("span", { class: "legend" }, h("span", { class: "key line" }, name), h("span", { class: "key band" }, "95 % interval"),
      reference === null ? null : h("span", { class: "key reference" }, `when trained ${number(reference)}`)) });
}

/**
 * A mean over the number of labels with the band that holds all along, and zero, which the band must
 * leave to decide. Points have `labels`, `mean`, `low` and `high`, which are null before the first look.
 */
export function confidence(title, points, { label, above, below }) {
  const seen = points.filter((point) => point.low !== null);
  // The first bands are so wide that they would hide the later ones: they run out of the frame.
  const shaping = seen.slice(Math.floor(seen.length / 4));
  const drawn = seen.length ? seen : points;
  const last = points.at(-1)?.labels || 1;
  return figure(title, (svg, width, height) => {
    const values = shaping.flatMap((point) => [point.low, point.high]).concat(drawn.map((point) => point.mean), 0);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const spread = (most - least) * 0.12 || 1;
    const steps = ticks(least - spread, most + spread, 4);
    const [low, high] = [Math.min(steps[0], least - spread), Math.max(steps.at(-1), most + spread)];
    const y = scale(low, high, height - BOTTOM, TOP);
    const within = (value) => y(Math.min(high, Math.max(low, value)));
    const x = scale(0, last, LEFT + 6, width - RIGHT);
    grid(svg, width, height, y, steps);
    if (seen.length) {
      const up = seen.map((point) => `${x(point.labels).toFixed(1)},${within(point.high).toFixed(1)}`);
      const down = seen.map((point) => `${x(point.labels).toFixed(1)},${within(point.low).toFixed(1)}`).reverse();
      svg.append(s("path", { class: "band", d: `M${[...up, ...down].join("L")}Z` }),
        s("line", { class: "cross", x1: x(seen[0].labels), x2: x(seen[0].labels), y1: TOP, y2: height - BOTTOM }));
    }
    svg.append(s("line", { class: "reference", x1: LEFT, x2: width - RIGHT, y1: y(0), y2: y(0) }),
      s("path", { class: "line", d: path(drawn.map((point) => [x(point.labels), within(point.mean)])) }));
    const told = seen.find((point) => point.low > 0 || point.high < 0);
    if (told) svg.append(s("circle", { class: "dot told", cx: x(told.labels), cy: within(told.mean), r: 5 }));
    svg.append(s("text", { class: "tick", x: width - RIGHT, y: TOP + 10, "text-anchor": "end" }, above),
      s("text", { class: "tick", x: width - RIGHT, y: height - BOTTOM - 5, "text-anchor": "end" }, below));
    bottom(svg, height, x, [0, Math.round(last / 2), last], (value) => number(value));
  }, { height: 260, label,
    legend: h("span", { class: "legend" }, h("span", { class: "key line" }, "mean difference"), h("span", { class: "key band" }, "holds all along"), h("span", { class: "key reference" }, "no difference")) });
}

/** Two distributions over the same bins, as shares: the reference filled, the window as a line. */
export function histogramPair(label, reference, now, names = ["training", "live"], ends = ["", ""]) {
  const shares = (counts) => {
    const total = counts.reduce((sum, count) => sum + count, 0);
    return counts.map((count) => (total ? count / total : 0));
  };
  const [first, second] = [shares(reference), shares(now)];
  const top = Math.max(...first, ...second) || 1;
  return figure("", (svg, width, height) => {
    const x = scale(0, first.length, 1, width - 1);
    const y = scale(0, top, height - 16, 4);
    const floor = y(0);
    first.forEach((share, index) => svg.append(s("rect", { class: "reference-bar", x: x(index) + 0.5, width: Math.max(1, x(1) - x(0) - 1), y: y(share), height: floor - y(share) })));
    const steps = second.flatMap((share, index) => [[x(index), y(share)], [x(index + 1), y(share)]]);
    svg.append(s("path", { class: "window-line", d: path([[x(0), floor], ...steps, [x(second.length), floor]]) }),
      s("line", { class: "grid", x1: 0, x2: width, y1: floor, y2: floor }));
    svg.append(s("text", { class: "tick", x: 0, y: height - 3 }, ends[0]), s("text", { class: "tick", x: width, y: height - 3, "text-anchor": "end" }, ends[1]));
  }, { height: 92, label: `${label}: ${names[0]} against ${names[1]}` });
}

/** Predicted against actual, with the line on which a perfect model would put all. */
export function scatter(title, pairs, unit) {
  const all = pairs.flat();
  const low = Math.min(...all, 0);
  const high = Math.max(...all);
  return figure(title, (svg, width, height) => {
    const x = scale(low, high, LEFT, width - RIGHT);
    const y = scale(low, high, height - BOTTOM - 14, TOP);
    const steps = ticks(low, high, 5);
    grid(svg, width, height, y, steps);
    svg.append(s("line", { class: "ideal", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }));
    // Dots of one path do not add up where they lie on each other; of several they do.
    const parts = Math.min(24, Math.ceil(pairs.length / 20));
    for (let part = 0; part < parts; part += 1) {
      const d = pairs.filter((_, index) => index % parts === part).map(([actual, predicted]) => `M${x(actual).toFixed(1)},${y(predicted).toFixed(1)}h.01`).join("");
      svg.append(s("path", { class: "cloud", d }));
    }
    for (const step of steps) svg.append(s("text", { class: "tick", x: x(step), y: height - 20, "text-anchor": "middle" }, number(step)));
    svg.append(s("text", { class: "tick", x: width - RIGHT, y: height - 4, "text-anchor": "end" }, `actual, ${unit}`),
      s("text", { class: "tick", x: LEFT + 6, y: TOP + 10 }, `predicted, ${unit}`));
  }, { height: 470, label: `Predicted against actual of ${number(pairs.length)} rows, in ${unit}` });
}

/** How much each feature moved one answer: bars from a common zero, the largest first. */
export function contributions(label, items, format) {
  const rows = [...items].sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
  const most = Math.max(...rows.map((row) => Math.abs(row.value))) || 1;
  return h("div", { class: "contributions", role: "list", "aria-label": label }, rows.map((row) => {
    const share = (50 * Math.abs(row.value)) / most;
    const bar = s("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      s("line", { class: "zero", x1: 50, x2: 50, y1: 0, y2: 10 }),
      s("rect", { class: row.value < 0 ? "less" : "more", x: row.value < 0 ? 50 - share : 50, width: Math.max(share, 0.4), y: 1, height: 8 }));
    return h("div", { role: "listitem", class: "contribution" },
      h("span", { class: "what" }, row.name, row.given ? h("span", { class: "faint" }, ` ${row.given}`) : null),
      bar, h("span", { class: "by" }, format(row.value)));
  }));
}

/** The share in percent of a distribution, given by its quantiles 0 … 100 %, that is below a value. */
export function percentile(quantiles, value) {
  if (!quantiles) return null;
  const last = quantiles.length - 1;
  if (value <= quantiles[0]) return value < quantiles[0] ? -1 : 0;
  if (value >= quantiles[last]) return value > quantiles[last] ? 101 : 100;
  const above = quantiles.findIndex((one) => one > value);
  const [low, high] = [quantiles[above - 1], quantiles[above]];
  return ((above - 1 + (value - low) / (high - low)) / last) * 100;
}

export function placed(quantiles, value) {
  const share = percentile(quantiles, value);
  if (share === null) return "what training saw is not known";
  if (share < 0) return "below all that training saw";
  if (share > 100) return "above all that training saw";
  return `above ${Math.round(share)} % of the training rows`;
}

/** The shape of a distribution given by its quantiles, with a value marked in it. */
export function strip(quantiles, label) {
  const low = quantiles[1];
  const high = quantiles[quantiles.length - 2];
  const bins = 36;
  const below = (value) => Math.min(100, Math.max(0, percentile(quantiles, value)));
  const edges = Array.from({ length: bins + 1 }, (_, index) => low + ((high - low) * index) / bins);
  const mass = edges.slice(1).map((edge, index) => below(edge) - below(edges[index]));
  const top = Math.max(...mass) || 1;
  let marked = null;
  const chart = figure("", (svg, width, height) => {
    const x = scale(low, high, 4, width - 4);
    mass.forEach((share, index) => {
      const tall = (share / top) * (height - 6);
      svg.append(s("rect", { class: "reference-bar", x: x(edges[index]), width: Math.max(1, x(edges[index + 1]) - x(edges[index]) - 1), y: height - tall, height: tall }));
    });
    if (marked === null) return;
    const at = Math.min(width - 4, Math.max(4, x(marked)));
    svg.append(s("line", { class: "mark", x1: at, x2: at, y1: 0, y2: height }));
  }, { height: 34, label });
  return {
    element: chart.element,
    set: (value) => {
      marked = value;
      chart.describe(`${label}: ${number(value, 4)} is ${placed(quantiles, value)}`);
      chart.redraw();
    },
  };
}
