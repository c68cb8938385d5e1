// Thumbs, with a reason and a comment for those who have one.

import { call } from "./api.js";
import { button, el, freshId, iconButton, tell } from "./dom.js";

const WORDS = {
  wrong: "It is wrong",
  unsafe: "It is unsafe",
  unhelpful: "It does not help",
  style: "Its style",
  correct: "It is correct",
  helpful: "It helps",
  clear: "It is clear",
  other: "Something else",
};

// The two buttons of an answer, and the form that opens below it. A thumb counts at once; the form adds to it.
export class Rating {
  constructor(exchange, reasons) {
    Object.assign(this, { exchange, reasons, choice: exchange.choices[0] });
    this.up = iconButton("up", "Good answer", () => this.#rate(1));
    this.down = iconButton("down", "Bad answer", () => this.#rate(-1));
    this.buttons = [this.up, this.down];
    this.place = el("div", { class: "rating-place" });
    this.draw();
  }

  draw() {
    const value = this.choice.rating?.value ?? 0;
    this.up.setAttribute("aria-pressed", String(value === 1));
    this.down.setAttribute("aria-pressed", String(value === -1));
  }

  async #rate(value) {
    const before = this.choice.rating;
    const more = before?.value === value ? before : { reason: null, comment: null };
    if (!(await this.#send(value, more.reason, more.comment))) return;
    this.#open(value);
  }

  async #send(value, reason, comment) {
    const body = { reply: this.exchange.reply, choice: this.choice.index ?? 0, value, reason, comment };
    try {
      await call("v1/feedback/ratings", { body });
    } catch (error) {
      tell(`The rating was not saved: ${error.message}`);
      return false;
    }
    this.choice.rating = { value, reason, comment };
    this.draw();
    tell(value > 0 ? "Saved: a good answer." : "Saved: a bad answer.");
    return true;
  }

  #open(value) {
    const name = freshId("reason");
    const { reason, comment } = this.choice.rating;
    const options = (value > 0 ? this.reasons.up : this.reasons.down).map((word) =>
      el(
        "label",
        { class: "chip" },
        el("input", { type: "radio", name, value: word, checked: word === reason }),
        el("span", {}, WORDS[word] ?? word),
      ),
    );
    const field = el("textarea", { rows: "2", maxlength: "2000", value: comment ?? "" });
    const close = () => {
      this.place.replaceChildren();
      (value > 0 ? this.up : this.down).focus();
    };
    const form = el(
      "form",
      {
        class: "card rating",
        on: {
          submit: async (event) => {
            event.preventDefault();
            const picked = form.querySelector("input:checked")?.value ?? null;
            if (await this.#send(value, picked, field.value.trim() || null)) close();
          },
          keydown: (event) => {
            if (event.key !== "Escape") return;
            event.stopPropagation();
            close();
          },
        },
      },
      el(
        "fieldset",
        {},
        el("legend", {}, value > 0 ? "What is good about it?" : "What is wrong with it?"),
        el("div", { class: "chips" }, ...options),
      ),
      el("label", { class: "field" }, "Comment (optional)", field),
      el(
        "div",
        { class: "row end" },
        button("Close", close, { class: "button quiet" }),
        el("button", { class: "button primary" }, "Save"),
      ),
    );
    this.place.replaceChildren(form);
    (form.querySelector("input") ?? field).focus({ preventScroll: true });
    form.scrollIntoView({ block: "nearest" });
  }
}
