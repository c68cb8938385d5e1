// What settings are made of.

import { el, freshId } from "./dom.js";
import { readSettings, writeSettings } from "./preferences.js";

// A field with its label and a sentence about it.
export function field(label, input, about) {
  const [id, aboutId] = [freshId("field"), freshId("about")];
  input.id = id;
  input.setAttribute("aria-describedby", aboutId);
  const sentence = el("p", { class: "soft", id: aboutId }, about);
  return el("div", { class: "field" }, el("label", { for: id }, label), input, sentence);
}

// A setting that is a number; `empty`: what it means that there is none.
export function number(key, label, about, attributes, empty) {
  const value = readSettings()[key];
  const input = el("input", {
    type: "number",
    value: value ?? "",
    placeholder: empty,
    name: key,
    ...attributes,
    on: {
      change: () => {
        if (!input.checkValidity()) {
          input.reportValidity();
          return;
        }
        if (input.value !== "" || empty)
          writeSettings({ [key]: input.value === "" ? null : input.valueAsNumber });
      },
    },
  });
  return field(label, input, about);
}

// A switch; `changed` gets what it is now, and its input.
export function check(label, about, isOn, changed, name) {
  const id = freshId("about");
  const input = el("input", {
    type: "checkbox",
    role: "switch",
    name,
    checked: isOn,
    "aria-describedby": id,
    on: { change: () => changed(input.checked, input) },
  });
  return el(
    "div",
    { class: "switch-place" },
    el(
      "label",
      { class: "switch" },
      input,
      el("span", { class: "knob", "aria-hidden": "true" }),
      el("span", {}, label),
    ),
    el("p", { class: "soft", id }, about),
  );
}

// Settings that belong together.
export function part(title, ...children) {
  return el("section", { class: "settings-part" }, el("h3", {}, title), ...children);
}
