// The shell around each page: where one is, theme, key; then the page itself, by its address.

import { get, key, live, root, Trouble } from "./api.js";
import { absent, h } from "./dom.js";
import { card } from "./card.js";
import { experiment } from "./experiment.js";
import { ledger } from "./ledger.js";
import { overview } from "./overview.js";
import { prediction } from "./prediction.js";
import { predictions } from "./predictions.js";
import { tryIt } from "./try.js";
import { useCase } from "./usecase.js";

const main = document.getElementById("main");
const VIEWS = {
  "": ["Monitor", useCase], try: ["Try it", tryIt], predictions: ["Predictions", predictions],
  experiment: ["Experiment", experiment], ledger: ["Ledger", ledger],
  card: ["Model card", card],
};

function theme() {
  const button = document.getElementById("theme");
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const name = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use the ${dark() ? "light" : "dark"} theme`);
  };
  button.addEventListener("click", () => {
    const next = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem("mlops-theme", next);
    name();
  });
  name();
}

function keyForm() {
  const form = document.getElementById("key-form");
  const button = document.getElementById("key");
  const value = document.getElementById("key-value");
  button.textContent = key.get() ? "API key: given" : "API key";
  button.addEventListener("click", () => {
    form.hidden = !form.hidden;
    button.setAttribute("aria-expanded", String(!form.hidden));
    if (!form.hidden) value.focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (value.value.trim()) key.set(value.value.trim());
    location.reload();
  });
  document.getElementById("key-forget").addEventListener("click", () => {
    key.forget();
    location.reload();
  });
}

function places(site, name, view) {
  const here = (is) => (is ? { "aria-current": "page" } : {});
  document.getElementById("places").append(
    h("ul", {},
      h("li", {}, h("a", { href: `${root}/dashboard`, ...here(!name) }, "Overview")),
      site.use_cases.map((one) =>
        h("li", {}, h("a", { href: `${root}/dashboard/${one.name}`, ...(one.name === name ? { "aria-current": view ? "true" : "page" } : {}) }, one.title))),
      h("li", {}, h("a", { href: `${root}/dashboard/ledger`, ...here(name === "ledger") }, "Ledger")),
      h("li", {}, h("a", { href: `${root}/docs` }, "API"))));
}

function tabs(one, view) {
  return h("nav", { class: "tabs", "aria-label": `${one.title}: pages` },
    h("ul", {}, Object.entries(VIEWS).map(([path, [title]]) =>
      h("li", {}, h("a", {
        href: `${root}/dashboard/${one.name}${path && `/${path}`}`,
        ...(path === view ? { "aria-current": "page" } : {}),
      }, title)))));
}

async function start() {
  theme();
  keyForm();
  const [name, view = ""] = location.pathname.slice(`${root}/dashboard`.length).split("/").filter(Boolean);
  const site = await get("/dashboard/site.json");
  places(site, name, view);
  const one = site.use_cases.find((each) => each.name === name);
  if (name === "ledger") {
    document.title = "Ledger · mlops";
    main.append(h("div", { class: "title" }, h("h1", {}, "Ledger"), h("p", { class: "headline" }, "Every decision about every version, newest first.")));
    await ledger(main, null, site);
    await live(() => get("/health/live"), () => {}, () => {}, 5);
    return;
  }
  if (!one) {
    document.title = "Overview · mlops";
    await overview(main, site);
    return;
  }
  const [title, show] = VIEWS[view] || ["Prediction", prediction];
  document.title = `${title} · ${one.title} · mlops`;
  main.append(h("div", { class: "title" }, h("h1", {}, view ? `${one.title}: ${title.toLowerCase()}` : one.title), tabs(one, view)));
  await show(main, one, site);
  if (view) await live(() => get(`${one.routes}/health/live`), () => {}, () => {}, 5);
}

start().catch((trouble) => {
  if (!(trouble instanceof Trouble)) console.error(trouble);
  main.append(absent(trouble.message));
});
