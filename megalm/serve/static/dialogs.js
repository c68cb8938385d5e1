// Questions to the reader before something happens that cannot be taken back, and one-line answers.

import { button, el, freshId } from "./dom.js";

// A modal dialog with `body` and buttons; resolves to what `answer` makes of the button that was pressed, null where it was left.
function open(title, body, act, isDanger, answer) {
  const heading = freshId("dialog");
  return new Promise((resolve) => {
    let result = null;
    const dialog = el("dialog", {
      "aria-labelledby": heading,
      on: {
        close: () => {
          dialog.remove();
          resolve(result);
        },
      },
    });
    const form = el(
      "form",
      {
        method: "dialog",
        on: {
          submit: () => {
            result = answer();
          },
        },
      },
      el("h2", { id: heading }, title),
      ...body,
      el(
        "div",
        { class: "row end" },
        button("Cancel", () => dialog.close(), { class: "button quiet" }),
        el("button", { class: isDanger ? "button danger" : "button primary" }, act),
      ),
    );
    dialog.append(form);
    document.body.append(dialog);
    dialog.showModal();
  });
}

// Whether the reader agrees.
export async function confirmed(title, text, act) {
  return (await open(title, [el("p", {}, text)], act, true, () => true)) === true;
}

// A line of text, null where the reader leaves.
export function asked(title, label, value) {
  const field = el("input", { type: "text", value, maxlength: "200", required: true });
  return open(title, [el("label", { class: "field" }, label, field)], "Save", false, () =>
    field.value.trim(),
  );
}
