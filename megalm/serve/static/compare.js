// Asks two models, or one model twice, the same, and takes the reader's pick.

import { ask, freshExchange } from "./asking.js";
import { Composer } from "./composer.js";
import { freshConversation, titleFrom } from "./conversations.js";
import { button, el } from "./dom.js";
import { markdown } from "./markdown.js";
import { picker } from "./picking.js";
import { readSettings } from "./preferences.js";
import { textOf, withSystem } from "./thread.js";

export class CompareView {
  #running = [];
  conversation = null; // the comparison that is shown

  // app: as of the chat.
  constructor(app) {
    this.app = app;
    this.selects = ["A", "B"].map(() => el("select", {}));
    this.blind = el("input", { type: "checkbox", checked: true });
    this.asked = el("p", { class: "bubble", hidden: true });
    this.columns = el("div", { class: "columns" });
    this.verdict = el("div", { class: "verdict" });
    this.composer = new Composer("Ask both", { send: (text) => this.#ask(text), stop: () => this.stop() });
    const labels = this.selects.map((select, place) =>
      el("label", { class: "field" }, `Model ${place + 1}`, select),
    );
    const hide = el(
      "label",
      { class: "check" },
      this.blind,
      el("span", {}, "Hide which is which until I have picked"),
    );
    this.intro = el(
      "div",
      { class: "empty" },
      el("h2", {}, "Which one is better?"),
      el(
        "p",
        {},
        "Two answers to one question, beside each other: of two models, or of one that answers twice.",
      ),
    );
    const head = el("div", { class: "compare-head" }, ...labels, hide);
    const scroll = el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Answers" },
      head,
      this.intro,
      this.asked,
      this.columns,
      this.verdict,
    );
    this.node = el("section", { class: "chat", "aria-label": "Compare" }, scroll, this.composer.node);
  }

  // Let go of what is shown.
  clear() {
    this.stop();
    this.conversation = null;
    this.intro.hidden = false;
    this.asked.hidden = true;
    this.columns.replaceChildren();
    this.verdict.replaceChildren();
  }

  // The models have come.
  draw() {
    const names = this.app.models.filter((model) => model.chat).map((model) => model.id);
    this.selects.forEach((select, place) => {
      const before = select.value;
      select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
      select.value = names.includes(before) ? before : (names[place] ?? names[0] ?? "");
    });
    this.composer.refuse(names.length ? null : "No model of this server has a chat template");
  }

  focus() {
    this.composer.field.focus();
  }

  stop() {
    this.#running.forEach((exchange) => exchange.stop?.());
  }

  async #ask(text) {
    const models = this.selects.map((select) => select.value);
    const isBlind = this.blind.checked;
    if (isBlind && crypto.getRandomValues(new Uint8Array(1))[0] % 2) models.reverse();
    const conversation = { ...freshConversation(), title: titleFrom(text) };
    const messages = withSystem([{ role: "user", content: text }], readSettings().system);
    const exchanges = models.map((model) => freshExchange(model, messages));
    conversation.exchanges = exchanges;
    this.conversation = conversation;
    this.#running = exchanges;
    this.intro.hidden = true;
    this.asked.hidden = false;
    this.asked.textContent = text;
    this.verdict.replaceChildren();
    const columns = exchanges.map((exchange, place) => column("AB"[place], exchange, isBlind));
    this.columns.replaceChildren(...columns.map((one) => one.node));
    this.composer.run(true);
    await Promise.all(
      exchanges.map((exchange, place) => ask(this.app, conversation, exchange, place, columns[place].draw)),
    );
    this.#running = [];
    this.composer.run(false);
    this.app.store.keep(conversation);
    this.app.listChanged();
    if (this.conversation === conversation) this.#judge(conversation, columns, isBlind);
  }

  #judge(conversation, columns, isBlind) {
    const { exchanges } = conversation;
    const reveal = () => columns.forEach((one) => one.reveal());
    if (exchanges.some((one) => one.state !== "done")) {
      reveal();
      this.verdict.replaceChildren(
        el("p", { class: "note" }, "Only two whole answers can be compared: ask again."),
      );
    } else if (!this.app.features.feedback) {
      this.verdict.replaceChildren(
        el("p", { class: "note" }, "This server keeps no feedback, so there is nothing to pick."),
        button("Show which is which", reveal),
      );
    } else {
      const done = el("p", { class: "note", tabindex: "-1" });
      const picked = () => {
        reveal();
        done.textContent = `A is ${exchanges[0].model}, B is ${exchanges[1].model}.`;
        if (!isBlind) return;
        for (const one of picks.childNodes) one.disabled = true; // what is picked from now on is not blind
        done.focus();
      };
      const picks = picker(...exchanges, picked);
      this.verdict.replaceChildren(picks, done);
    }
  }
}

// One of the two answers.
function column(letter, exchange, isBlind) {
  const name = el("span", { class: "soft" }, isBlind ? "" : exchange.model);
  const body = el("div", { class: "answer-body" });
  const note = el("p", { class: "note" });
  const node = el(
    "section",
    { class: "column", "aria-label": `Answer ${letter}` },
    el("h2", {}, `${letter} `, name),
    body,
    note,
  );
  const draw = () => {
    const isRunning = exchange.state === "running";
    node.setAttribute("aria-busy", String(isRunning));
    body.replaceChildren(...markdown(textOf(exchange)));
    const ends = { running: "Writing\u2026", stopped: "Stopped.", failed: exchange.error?.message };
    note.textContent =
      ends[exchange.state] ??
      (exchange.choices[0].finish_reason === "length" ? "Cut off at the token limit." : "");
  };
  const reveal = () => {
    name.textContent = exchange.model;
  };
  return { node, draw, reveal };
}
