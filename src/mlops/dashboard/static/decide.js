// Deciding from a page: a button, then a dialog that asks for the reason, and the server's answer.

import { post, Trouble } from "./api.js";
import { absent, h, say } from "./dom.js";

/** A control of a dialog with its label; its `name` is what the route calls it. */
const control = (id, name, label, element) => {
  element.id = `${id}-${name}`;
  element.name = name;
  return h("div", { class: "field" }, h("label", { for: element.id }, label), element);
};

export const versionChoice = (versions, chosen) => h("select", { required: true }, versions.map((version) =>
  h("option", { value: version, selected: version === chosen }, `version ${version}`)));

export const shareChoice = (percent) => h("input", { type: "number", min: 0.1, max: 99.9, step: "any", value: percent, required: true, inputmode: "decimal" });

/**
 * A button that opens a dialog. `fields` are [name, label, make] beside the reason; `request` turns
 * what was typed into [path, body]; `done` into words, of the answer. `changed` is called after it.
 */
export function decision({ id, button, title, says, busy, fields = [], request, done, changed, danger = false }) {
  const status = h("div", { class: "outcome", role: "status" });
  const reason = h("input", { required: true, maxlength: 400, autocomplete: "off" });
  const confirm = h("button", { type: "submit", class: danger ? "danger" : null }, button);
  const close = h("button", { type: "button", class: "quiet" }, "Cancel");
  const form = h("form", { method: "dialog" }, h("h2", { id: `${id}-title` }, title), h("p", { class: "note" }, says),
    fields.map(([name, label, make]) => control(id, name, label, make())), control(id, "reason", "Reason, which the ledger keeps", reason),
    status, h("div", { class: "buttons" }, confirm, close));
  const dialog = h("dialog", { id, "aria-labelledby": `${id}-title` }, form);
  close.addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const typed = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()]));
    if (!typed.reason) {
      reason.value = "";
      reason.reportValidity();
      return;
    }
    confirm.disabled = true;
    status.replaceChildren(h("p", { class: "note" }, busy));
    try {
      const answer = await post(...request(typed));
      status.replaceChildren(h("p", { class: "calm" }, `✓ ${done(answer, typed)}`));
      confirm.hidden = true;
      say(close, "Close");
      changed();
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      status.replaceChildren(absent(`✕ Not done: ${trouble.message}`));
    } finally {
      confirm.disabled = false;
    }
  });
  const opener = h("button", { type: "button", class: danger ? "quiet danger" : "quiet", "aria-haspopup": "dialog", onclick: () => {
    form.reset();
    status.replaceChildren();
    confirm.hidden = false;
    say(close, "Cancel");
    dialog.showModal();
    form.elements[0].focus();
  } }, button);
  return h("span", { class: "decide" }, opener, dialog);
}
