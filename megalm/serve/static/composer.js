// The field for a message: Enter sends, Shift+Enter begins a new line, the button stops an answer that is being written.

import { el, freshId, icon } from "./dom.js";

// does: {send(text), stop()}; where `send` answers false, the text stays.
export class Composer {
  #isRunning = false;

  constructor(label, does) {
    const id = freshId("message");
    this.does = does;
    this.field = el("textarea", {
      id,
      rows: "1",
      placeholder: label,
      autocomplete: "off",
      on: { input: () => this.#fit(), keydown: (event) => this.#key(event) },
    });
    this.button = el("button", { class: "send" });
    this.hint = el("p", { class: "hint" });
    this.node = el(
      "form",
      {
        class: "composer",
        on: {
          submit: (event) => {
            event.preventDefault();
            this.#act();
          },
        },
      },
      el(
        "div",
        { class: "composer-box" },
        el("label", { for: id, class: "unseen" }, label),
        this.field,
        this.button,
      ),
      this.hint,
    );
    this.run(false);
  }

  // isRunning: an answer is being written.
  run(isRunning) {
    this.#isRunning = isRunning;
    const label = isRunning ? "Stop" : "Send";
    this.button.setAttribute("aria-label", label);
    this.button.title = isRunning ? "Stop (Escape)" : "Send (Enter)";
    this.button.replaceChildren(icon(isRunning ? "stop" : "send"));
    this.hint.textContent = isRunning
      ? "Escape stops the answer"
      : "Enter sends, Shift + Enter begins a new line";
    this.#fit();
  }

  // Nothing can be asked, and why.
  refuse(reason) {
    this.field.disabled = reason !== null;
    if (reason !== null) this.hint.textContent = reason;
    this.#fit();
  }

  #act() {
    if (this.#isRunning) {
      this.does.stop();
      return;
    }
    const text = this.field.value;
    if (!text.trim() || this.does.send(text) === false) return;
    this.field.value = "";
    this.#fit();
  }

  #key(event) {
    // While a syllable is put together by an input method, Enter belongs to it.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.#isRunning) this.#act();
  }

  #fit() {
    this.field.style.height = "auto";
    if (this.field.scrollHeight) this.field.style.height = `${this.field.scrollHeight}px`; // 0: not shown
    if (!this.#isRunning) this.button.disabled = this.field.disabled || !this.field.value.trim();
    else this.button.disabled = false;
  }
}
