// All use cases: healthy or not and why, traffic, latency and errors as they are, versions, alerts.

import { get, live, root } from "./api.js";
import { series } from "./charts.js";
import { absent, badge, counted, h, milliseconds, number, percent, say, table, when, words } from "./dom.js";

/** A figure with its name; `set` changes what it says. */
function tile(name, note) {
  const value = h("dd", {}, "–");
  const remark = h("dd", { class: "note" }, note || "");
  return {
    element: h("div", { class: "tile" }, h("dt", {}, name), value, remark),
    set: (text, more) => {
      say(value, text);
      if (more !== undefined) say(remark, more);
    },
  };
}

/** The sentence on a use case, with a sign that does without its colour. */
function verdict() {
  const state = badge("", "…");
  const text = h("p", { class: "sentence" }, "");
  return {
    element: h("div", { class: "verdict" }, state, text),
    set: (one) => {
      state.className = `badge ${one.healthy ? "good" : "bad"}`;
      say(state, one.healthy ? "✓ healthy" : "✕ not healthy");
      say(text, one.sentence.replace(/^(not )?healthy: /, ""));
    },
  };
}

/** The live figures of a use case, shared by its own page and the overview. */
function figures() {
  const rate = tile("Requests");
  const p95 = tile("Latency p95");
  const errors = tile("Errors");
  const total = tile("Predictions");
  const warned = tile("Warnings");
  return {
    element: h("dl", { class: "tiles" }, rate.element, p95.element, errors.element, total.element, warned.element),
    set: (one) => {
      const minute = one.traffic.minute || {};
      const hour = one.traffic.hour || {};
      const busy = minute.requests > 0;
      const from = busy ? minute : hour;
      const span = busy ? "last minute" : "last hour";
      rate.set(`${number(minute.requests_per_second ?? null, 2)}/s`, "last minute");
      p95.set(milliseconds(from.response_time_ms?.p95), `p50 ${milliseconds(from.response_time_ms?.p50)}, ${span}`);
      errors.set(percent(from.error_rate), `5xx ${percent(from.server_error_rate)}, ${span}`);
      total.set(number(one.total_predictions), "ever logged");
      const share = one.total_predictions ? one.predictions_with_warnings / one.total_predictions : null;
      warned.set(percent(share), `${number(one.predictions_with_warnings)} ever`);
    },
  };
}

/** The whole minutes of the last hour, and as the last point the minute that ends now. */
function minutes(one) {
  const now = one.traffic.minute;
  if (!now) return one.minutes;
  const { p50, p95 } = now.response_time_ms;
  return [...one.minutes, {
    start: new Date().toISOString(), requests: now.requests, errors: Math.round((now.error_rate || 0) * now.requests), p50, p95,
  }];
}

/** Requests a minute, with errors in them, over the last hour. */
function trafficChart(title, height = 150) {
  return series(title, {
    height,
    marks: [
      { name: "requests a minute", kind: "area", of: (minute) => minute.requests },
      { name: "errors", kind: "bars", of: (minute) => minute.errors },
    ],
  });
}

function latencyChart(title, height = 150) {
  return series(title, {
    height,
    unit: "ms",
    marks: [
      { name: "p95", kind: "line second", of: (minute) => minute.p95 },
      { name: "p50", kind: "line", of: (minute) => minute.p50 },
    ],
  });
}

function versions(one) {
  if (!one.versions.length) return absent("No version is registered here.");
  return table(`Versions of ${one.title}`, ["Version", "Candidate", "Predictions", "p95", "Registered"],
    one.versions.map((each) => [
      h("span", {}, `${each.version} `, each.answers ? badge("good", "answers") : null),
      each.candidate,
      number(each.predictions),
      milliseconds(each.response_time_ms?.p95),
      h("time", { datetime: each.registered_utc, title: when(each.registered_utc) }, when(each.registered_utc).slice(0, 10)),
    ]), { numeric: [2, 3] });
}

function alerts(one) {
  if (one.alerts === null) return absent("Alerts cannot be told.");
  if (!one.alerts.length) return h("p", { class: "calm" }, "✓ No open alerts.");
  return h("ul", { class: "alerts" }, one.alerts.map((alert) => {
    const [head, ...rest] = alert.says.split(": ");
    return h("li", {}, badge("bad", `▲ ${alert.severity}`), " ", h("strong", {}, words(alert.rule)), ` ${head}`,
      h("span", { class: "faint" }, `, since ${when(alert.since)}`),
      rest.length ? h("details", {}, h("summary", {}, "In detail"), h("p", { class: "note" }, rest.join(": "))) : null);
  }));
}

/** All that is live of a use case, with charts of a height; `set` shows what was seen. */
export function liveParts(height) {
  const state = verdict();
  const numbers = figures();
  const traffic = trafficChart("Requests a minute, last hour", height);
  const latency = latencyChart("Latency of answers, last hour", height);
  const known = h("div", {});
  const open = h("div", {});
  let before = "";
  return {
    state: state.element,
    numbers: numbers.element,
    charts: h("div", { class: "pair" }, traffic.element, latency.element),
    versions: known,
    alerts: open,
    set: (seen) => {
      state.set(seen);
      numbers.set(seen);
      traffic.set(minutes(seen));
      latency.set(minutes(seen));
      const now = JSON.stringify([seen.versions, seen.alerts]);
      if (now === before) return;
      before = now;
      known.replaceChildren(versions(seen));
      open.replaceChildren(alerts(seen));
    },
  };
}

function card(one) {
  const parts = liveParts(120);
  const id = `uc-${one.name}`;
  return {
    name: one.name,
    element: h("article", { class: "panel card", "aria-labelledby": id },
      h("div", { class: "panel-head" },
        h("h2", { id }, h("a", { href: `${root}/dashboard/${one.name}` }, one.title)),
        h("p", { class: "links" },
          h("a", { href: `${root}/dashboard/${one.name}/try` }, "Try it"),
          h("a", { href: `${root}/dashboard/${one.name}/predictions` }, "Predictions"))),
      parts.state, parts.numbers, parts.charts,
      h("h3", {}, "Versions"), parts.versions, h("h3", {}, "Open alerts"), parts.alerts),
    set: parts.set,
  };
}

export async function overview(main, site) {
  const cards = site.use_cases.map(card);
  const trouble = h("div", {});
  const headline = h("p", { class: "headline" }, "");
  main.append(h("div", { class: "title" }, h("h1", {}, "Overview"), headline), trouble,
    h("div", { class: "cards" }, cards.map((one) => one.element)));
  await live(() => get("/overview"), (seen) => {
    trouble.replaceChildren();
    const ill = seen.use_cases.filter((one) => !one.healthy).map((one) => one.title);
    say(headline, ill.length
      ? `${ill.join(" and ")} ${ill.length === 1 ? "needs" : "need"} attention.`
      : `${counted(cards.length, "use case is", "use cases are")} healthy.`);
    for (const one of seen.use_cases) cards.find((each) => each.name === one.use_case)?.set(one);
  }, (message) => trouble.replaceChildren(absent(message)));
}

