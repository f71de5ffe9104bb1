// Forms that filter a list: what they share.

import { h } from "./dom.js";

/** A control with its label; `name` is what the route calls it. */
export function field(name, label, control, hint) {
  control.id = `filter-${name}`;
  control.name = name;
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, hint ? h("p", { class: "hint" }, hint) : null);
}

/** The form as it stands, for the address: only what was filled in, as it was typed. */
export const kept = (form) => new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));

/** Empty a form: what the address asked for when the page was opened is no default to go back to. */
function empty(form, names) {
  for (const name of names) {
    const control = form.elements[name];
    if (control?.options) for (const option of control.options) option.defaultSelected = option.value === "";
    else if (control) control.defaultValue = "";
  }
}

/** Whenever the form is sent or cleared: the address says what it asks, and `begin` asks it. */
export function onAsked(form, names, begin) {
  function ask() {
    const text = kept(form).toString();
    history.replaceState(null, "", text ? `?${text}` : location.pathname);
    begin();
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  form.addEventListener("reset", () => {
    empty(form, names);
    setTimeout(ask);
  });
}
