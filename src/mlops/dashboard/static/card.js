// The model card of the version that answers: what it is, how good, for whom, and where not to use it.

import { get } from "./api.js";
import { h, panel, table } from "./dom.js";

/** Text in which `words between backticks` are names, and *words between stars* stand out. */
const prose = (text) => text.split(/(`[^`]+`|\*[^*\s][^*]*\*)/).map((part) => {
  if (part.startsWith("`") && part.endsWith("`") && part.length > 2) return h("code", {}, part.slice(1, -1));
  if (part.startsWith("*") && part.endsWith("*") && part.length > 2) return h("em", {}, part.slice(1, -1));
  return part;
});

function block(title, one) {
  if (one.items) return h("ul", { class: "prose" }, one.items.map((item) => h("li", {}, prose(item))));
  if (one.head) return table(`${title}: ${one.head.join(", ")}`, one.head, one.rows.map((row) => row.map(prose)));
  return h("p", { class: "prose" }, prose(one.text));
}

const id = (title) => title.toLowerCase().replaceAll(/[^a-z]+/g, "-");

export async function card(main, one) {
  const found = await get(`${one.routes}/card`);
  const text = new Blob([found.markdown], { type: "text/markdown" });
  main.append(
    h("section", { class: "panel", "aria-label": "This card" },
      h("p", { class: "prose" }, `Of version ${found.model_version}, which answers now; made from its sealed bundle. `,
        h("a", { href: URL.createObjectURL(text), download: `${one.name}-version-${found.model_version}.md` }, "As Markdown")),
      h("nav", { class: "contents", "aria-label": "Sections" }, h("ul", {}, found.sections.map(({ title }) =>
        h("li", {}, h("a", { href: `#${id(title)}` }, title)))))),
    ...found.sections.map(({ title, blocks }) => panel(id(title), title, null, blocks.map((each) => block(title, each)))));
}
