// Two answers to one prompt beside each other, and which of them is better.

import { call } from "./api.js";
import { button, el, freshId, tell } from "./dom.js";
import { markdown } from "./markdown.js";
import { textOf } from "./thread.js";

const PICKS = [
  ["a", "A is better"],
  ["b", "B is better"],
  ["tie", "Both are good"],
  ["neither", "Neither is good"],
];

function sideOf(exchange) {
  return { reply: exchange.reply, choice: exchange.choices[0].index ?? 0 };
}

// The buttons; `picked` is called once the server has the pick.
export function picker(one, other, picked) {
  const buttons = PICKS.map(([pick, words]) => {
    const pressed = async () => {
      try {
        await call("v1/feedback/comparisons", { body: { a: sideOf(one), b: sideOf(other), pick } });
      } catch (error) {
        tell(`The pick was not saved: ${error.message}`);
        return;
      }
      buttons.forEach((each) => each.setAttribute("aria-pressed", String(each.dataset.pick === pick)));
      picked(pick); // closes the dialog, if there is one, and what would be said in it
      tell(`Saved: ${words}.`);
    };
    return button(words, pressed, { "data-pick": pick, "aria-pressed": "false" });
  });
  return el("div", { class: "picks", role: "group", "aria-label": "Which answer is better?" }, ...buttons);
}

// A dialog with two answers of a conversation; resolves to the exchange to go on with, null where nothing was picked.
export function pickBetween(one, other) {
  const heading = freshId("pick");
  return new Promise((resolve) => {
    let kept = null;
    const dialog = el("dialog", {
      class: "wide-dialog",
      "aria-labelledby": heading,
      on: {
        close: () => {
          dialog.remove();
          resolve(kept);
        },
      },
    });
    const column = (letter, exchange) =>
      el(
        "section",
        { class: "column", "aria-label": `Answer ${letter}` },
        el("h3", {}, `${letter} `, el("span", { class: "soft" }, exchange.model)),
        el("div", { class: "answer-body" }, ...markdown(textOf(exchange))),
      );
    const picked = (pick) => {
      kept = pick === "b" ? other : one;
      dialog.close();
    };
    dialog.append(
      el("h2", { id: heading }, "Which answer is better?"),
      el("div", { class: "columns" }, column("A", one), column("B", other)),
      picker(one, other, picked),
      el(
        "div",
        { class: "row end" },
        button("Close", () => dialog.close(), { class: "button quiet" }),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}
