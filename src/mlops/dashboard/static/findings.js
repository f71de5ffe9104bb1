// Findings of the monitors, as all of them say it: a verdict, and one sentence.

import { badge, h, words } from "./dom.js";

const VERDICTS = { ok: ["good", "✓ ok"], alarm: ["bad", "▲ alarm"] };

/** The badge of a verdict; whatever is not known to be ok or an alarm is "cannot tell". */
export const verdictBadge = (verdict) => badge(...(VERDICTS[verdict] || ["unsure", "? cannot tell"]));

export const findings = (found) => h("ul", { class: "findings" }, found.map((one) =>
  h("li", {}, verdictBadge(one.verdict), " ", h("strong", {}, words(one.subject)), ` ${one.says}`)));
