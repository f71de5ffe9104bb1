// A challenger beside the champion: what it found so far, when it may decide, and buttons to decide.

import { get, getOr, live, root } from "./api.js";
import { confidence } from "./charts.js";
import { decision, shareChoice, versionChoice } from "./decide.js";
import { absent, badge, counted, h, number, panel, percent, table, when } from "./dom.js";

const VERDICTS = { better: ["good", "✓ better"], worse: ["bad", "✕ worse"] };
const OUTCOMES = { promoted: ["good", "▲ promoted"], kept: ["unsure", "champion kept"], stopped: ["unsure", "stopped"] };
const RATIO = { ok: ["good", "✓ sound"], alarm: ["bad", "▲ alarm"] };
const SHOWN_POINTS = 12;

const modeOf = (each) => (each.mode === "ab" ? "A/B" : "shadow");

const moment = (text, length = 19) => h("time", { class: "moment", datetime: text }, when(text).slice(0, length));

/** In words what is under way. */
function terms(open) {
  const how = open.mode === "ab"
    ? `answers ${percent(open.share)} of the clients`
    : "answers nobody: it is asked in the shadow what the champion was asked";
  return `Version ${open.challenger} ${how}, and is held against version ${open.champion} since ${when(open.started_utc)}. ${
    open.auto ? "Its verdict decides by itself." : "Its verdict waits for a person."}`;
}

function forecast({ verdict, trouble }) {
  return h("div", {}, h("div", { class: "verdict" }, badge(...(VERDICTS[verdict.outcome] || ["unsure", `? ${verdict.outcome}`])),
    h("p", { class: "sentence" }, verdict.says.replace(`${verdict.outcome}, `, "").replace(`${verdict.outcome}: `, ""))), trouble ? h("p", { class: "absent" }, trouble) : null);
}

/** The judgement over labels, the series being thinned out, and as it is now. */
function judged({ series, now, arms: { champion, challenger }, experiment: { mode } }) {
  const labels = mode === "ab" ? champion.labels + challenger.labels : challenger.labels;
  return labels > (series.at(-1)?.labels ?? 0) ? [...series, { labels, at: new Date().toISOString(), ...now }] : series;
}

function chart(found) {
  const { verdict } = found;
  const series = judged(found);
  if (!series.length) return absent("No truth has come for both yet: POST /feedback takes it. The verdict rests on losses, so it begins with the first.");
  const last = series.at(-1);
  const known = last.low !== null;
  const side = known && last.high < 0 ? "all below zero: better" : known && last.low > 0 ? "all above zero: worse" : "zero is within: it cannot be told yet";
  const label = `Difference in mean loss after ${number(last.labels)} labels: ${number(last.mean)}${
    known ? `, between ${number(last.low)} and ${number(last.high)}, ${side}` : ", too few labels to look at"}`;
  const every = Math.max(1, Math.ceil(series.length / SHOWN_POINTS));
  const rows = series.filter((_, index) => (series.length - 1 - index) % every === 0).map((point) => [
    number(point.labels), number(point.mean), point.low === null ? "too few" : `${number(point.low)} to ${number(point.high)}`, moment(point.at, 16)]);
  return h("div", {},
    confidence("Challenger’s loss less the champion’s, by labels", series, { label, above: "↑ worse", below: "↓ better" }).element,
    h("p", { class: "note" }, verdict.days === null && VERDICTS[verdict.outcome]
      ? "The dot marks where the band left zero: from there on it may decide."
      : "It may decide as soon as the band leaves zero, on either side. One may look as often as one likes: the band holds at all looks together.",
      known ? " Before the upright line there were too few labels." : ""),
    h("details", {}, h("summary", {}, "As a table"), table("Confidence sequence", ["Labels", "Difference", "Holds all along", "When"], rows, { numeric: [0, 1, 2] })));
}

function arms(found) {
  return table("Labels and losses of both", ["Arm", "Version", "Labels", "Mean loss"], ["champion", "challenger"].map((arm) => {
    const one = found.arms[arm];
    return [arm, String(one.version), number(one.labels), number(one.mean_loss, 4)];
  }), { numeric: [1, 2, 3] });
}

/** Whether clients went where they should. */
function ratio({ sample_ratio: seen }) {
  const rows = seen.clients.map((each) => {
    const [champion, challenger] = [each.champion ?? 0, each.challenger ?? 0];
    const all = champion + challenger;
    return [moment(each.since), percent(each.share), number(champion), number(challenger), all ? percent(challenger / all) : "–"];
  });
  const says = seen.verdict === "alarm"
    ? "Clients did not go where they should: what the arms show cannot be compared."
    : `Evidence against the split ${number(seen.evidence)}; an alarm from 1,000 on.`;
  return h("div", {}, h("div", { class: "verdict" }, badge(...(RATIO[seen.verdict] || ["unsure", "? cannot tell"])), h("p", { class: "sentence" }, says)),
    rows.length ? table("Clients by arm", ["Since", "Meant for it", "Champion’s", "Challenger’s", "Came to it"], rows, { numeric: [1, 2, 3, 4] })
      : absent("No client with a name has come yet: the header X-Client-ID names one."));
}

/** How far the process that follows the log is behind it. */
function lag({ experiment: { mode }, rows_behind: behind }) {
  if (behind === null) return "What follows the log has not begun yet.";
  if (behind) return `${counted(behind, "logged row")} ${mode === "shadow" ? "wait for the challenger’s answer" : "are not counted yet"}.`;
  return mode === "shadow" ? "The challenger has answered all that was logged." : "All that was logged is counted.";
}

function under(found) {
  const open = found.experiment;
  const shadow = open.mode === "shadow";
  return [
    h("section", { class: "panel", "aria-label": "Under way" },
      h("div", { class: "panel-head" }, h("h2", {}, `${modeOf(open)[0].toUpperCase()}${modeOf(open).slice(1)}: version ${open.challenger} against ${open.champion}`),
        h("p", { class: "lead" }, `experiment ${open.id}, alpha ${open.alpha}`)),
      h("p", {}, terms(open)), forecast(found), chart(found)),
    h("div", { class: "sides" },
      panel("arms", "Both versions", null, arms(found), h("p", { class: "note" }, lag(found)),
        found.left_out ? h("p", { class: "note" }, `${counted(found.left_out, "prediction")} had no truth in time and ${found.left_out === 1 ? "is" : "are"} left out.`) : null),
      panel("ratio", "Sample ratio", null, shadow
        ? h("p", { class: "calm" }, "✓ In the shadow both answer every row: there is no split that could be off.") : ratio(found))),
  ];
}

function past(found) {
  if (!found.past.length) return absent("There was none before.");
  return table("Experiments before", ["Number", "How", "Versions", "From", "Until", "Outcome"], found.past.map((each) => [
    String(each.id), modeOf(each), `${each.challenger} against ${each.champion}`, moment(each.started_utc, 16), moment(each.ended_utc, 16),
    badge(...(OUTCOMES[each.outcome] || ["unsure", each.outcome]))]));
}

/** The buttons, for what may be done now. */
function decisions(one, open, versions, changed) {
  const answers = versions.find((each) => each.answers)?.version ?? open?.champion;
  const others = versions.map((each) => each.version).filter((version) => version !== answers);
  const common = { changed };
  const experiment = (action, typed) => ["/admin/experiment", { use_case: one.name, action, reason: typed.reason,
    ...(typed.version ? { version: Number(typed.version) } : {}), ...(typed.share ? { share: Number((Number(typed.share) / 100).toPrecision(12)) } : {}) }];
  const version = (chosen) => ["version", "Version", () => versionChoice(others, chosen)];
  const share = (now) => ["share", "Percent of the clients", () => shareChoice(now)];
  const buttons = [];
  if (open) {
    buttons.push(decision({ ...common, id: "stop", button: "Stop it", title: `Stop the experiment with version ${open.challenger}?`,
      says: `Everybody is answered by version ${open.champion} again. What was found stays in the ledger.`, busy: "Stopping …",
      request: (typed) => experiment("stop", typed), done: () => "The experiment has ended." }));
    if (open.mode === "ab") {
      buttons.push(decision({ ...common, id: "share", button: "Change the share", title: `How many clients is version ${open.challenger} to answer?`,
        says: "Clients keep their version as far as the new share allows.", busy: "Changing …", fields: [share(100 * open.share)],
        request: (typed) => experiment("share", typed), done: (_, typed) => `Its share is ${typed.share} % within a second.` }));
    }
  } else if (others.length) {
    buttons.push(decision({ ...common, id: "shadow", button: "Try one in the shadow", title: "Which version is to answer in the shadow?",
      says: "It is asked what the champion is asked, later and beside it. No client gets its answers.", busy: "Beginning …", fields: [version(others[0])],
      request: (typed) => experiment("shadow", typed), done: (_, typed) => `Version ${typed.version} follows in the shadow.` }),
    decision({ ...common, id: "ab", button: "Begin an A/B", title: "Which version is to answer some of the clients?",
      says: "Each client keeps its version. The champion answers all others.", busy: "Beginning …", fields: [version(others[0]), share(10)],
      request: (typed) => experiment("ab", typed), done: (_, typed) => `Version ${typed.version} answers ${typed.share} % of the clients within a second.` }));
  }
  if (others.length) {
    buttons.push(decision({ ...common, id: "promote", button: "Promote", title: "Which version is to be champion?",
      says: "The gates are asked first, and may refuse it. An open experiment ends with it.", busy: "The gates are being asked; this takes some seconds …", fields: [version(open?.challenger ?? others[0])],
      request: (typed) => ["/admin/promote", { use_case: one.name, version: Number(typed.version), reason: typed.reason }],
      done: (answer) => (answer.changed ? `Version ${answer.version} is champion; before it was ${answer.previous ?? "none"}.` : `Version ${answer.version} was champion already.`) }),
    decision({ ...common, id: "rollback", button: "Roll back", danger: true, title: `Go back from version ${answers ?? "–"} to the champion before it?`,
      says: "No gate is asked but the golden rows. An open experiment ends with it.", busy: "Going back …",
      request: (typed) => ["/admin/rollback", { use_case: one.name, reason: typed.reason }],
      done: (answer) => `Version ${answer.version} is champion again, not ${answer.previous}.` }));
  }
  return buttons.length ? h("div", { class: "buttons" }, buttons) : null;
}

function nothing(one, versions) {
  return absent(versions.length < 2
    ? `No experiment, and ${versions.length ? "only one version" : "no version"} to try: mlops train ${one.name} makes ${versions.length ? "another" : "the first"}.`
    : `No experiment is open: every client is answered by the champion. Begin one here, or with: mlops experiment shadow ${one.name} VERSION`);
}

export async function experiment(main, one) {
  const place = h("div", { class: "now" });
  const deciding = h("div", {});
  const before = h("div", {});
  main.append(place, panel("decide", "Decide", "With a key of the role admin.", deciding), panel("past", "Past experiments", null, before),
    h("p", {}, h("a", { href: `${root}/dashboard/${one.name}/ledger` }, "What was decided, and on what evidence: the ledger")));
  let drawn = "";
  let choices = "";
  async function load() {
    const { use_cases: [found] } = await get(`${one.routes}/experiments`);
    const [seen] = await getOr(`${one.routes}/overview`);
    return { found, versions: seen?.use_cases[0].versions ?? [] };
  }
  function show({ found, versions }) {
    const now = JSON.stringify([found, versions.map((each) => each.version)]);
    if (now !== drawn) {
      const open = place.querySelector("details[open]");
      place.replaceChildren(...(found.experiment ? under(found) : [nothing(one, versions)]));
      if (open) place.querySelector("details")?.setAttribute("open", "");
      before.replaceChildren(past(found));
      drawn = now;
    }
    const may = JSON.stringify([found.experiment && [found.experiment.id, found.experiment.share], versions.map((each) => [each.version, each.answers])]);
    // A dialog in which somebody types, or reads the answer, is left alone.
    if (may === choices || deciding.querySelector("dialog[open]")) return;
    choices = may;
    deciding.replaceChildren(decisions(one, found.experiment, versions, () => load().then(show)) ?? absent(
      `There is nothing to decide with ${versions.length ? "one version" : "no version"}: mlops train ${one.name} makes ${versions.length ? "another" : "the first"}.`));
  }
  await live(load, show, (message) => place.replaceChildren(absent(message)), 3);
}
