// The view of one conversation: asks, shows, tries again, goes on.

import { ask, freshExchange } from "./asking.js";
import { Composer } from "./composer.js";
import { freshConversation, titleFrom } from "./conversations.js";
import { download, el, reconcile, tell } from "./dom.js";
import { AnswerView, questionView, saveEdit } from "./message.js";
import { pickBetween } from "./picking.js";
import { readSettings } from "./preferences.js";
import { Speech } from "./speech.js";
import {
  answersSame,
  asMarkdown,
  dialogOf,
  newestBelow,
  promptAfter,
  spokenOf,
  textOf,
  turnsOf,
  withSystem,
} from "./thread.js";
import { isWriting } from "./writing.js";

const NEAR = 80; // pixels from the end within which the page follows what is written

export class ChatView {
  #views = new Map(); // of exchanges: {question, answer}
  #written = new Map(); // conversations in which an answer is being written, by id, the shown one or not
  #leaf = null;

  // app: {features, models, store, model(), listChanged(), begun(conversation), titled(conversation), askForKey()}
  constructor(app) {
    this.app = app;
    this.turns = el("div", { class: "turns" });
    this.empty = el("div", { class: "empty" });
    this.scroll = el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Messages" },
      this.empty,
      this.turns,
    );
    this.composer = new Composer("Write a message", {
      send: (text) => this.send(text),
      stop: () => this.stop(),
    });
    this.node = el("section", { class: "chat", "aria-label": "Chat" }, this.scroll, this.composer.node);
    this.conversation = freshConversation();
  }

  // Show a conversation; an answer of another one goes on being written.
  open(conversation) {
    this.conversation = conversation;
    this.#leaf = conversation.exchanges.at(-1) ?? null;
    this.#views.clear();
    this.draw();
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  focus() {
    this.composer.field.focus();
  }

  // There is one object of each of these: a second one would not hear of the answer.
  get written() {
    return [...this.#written.values()];
  }

  get #running() {
    return this.conversation.exchanges.find((one) => one.state === "running");
  }

  stop() {
    this.#running?.stop?.();
  }

  send(text) {
    const leaf = this.#goesOnFrom();
    return this.#ask(promptAfter(leaf, text, readSettings().system), leaf);
  }

  // What a new message follows: an answer that did not come is left out, with its question.
  #goesOnFrom() {
    const turns = turnsOf(this.conversation.exchanges, this.#leaf);
    const hasText = (one) => one.state !== "failed" && (one.state !== "stopped" || textOf(one));
    return turns.map((turn) => turn.exchange).findLast(hasText) ?? null;
  }

  #ask(messages, parent) {
    const { conversation } = this;
    if (isWriting(conversation.id)) {
      tell("An answer is being written: stop it first.");
      return false;
    }
    const model = this.app.model();
    if (!model) return false;
    const exchange = freshExchange(model, messages, parent?.reply ?? null);
    const others = conversation.exchanges.filter((one) => answersSame(one, exchange));
    conversation.exchanges = conversation.exchanges.filter((one) => one.state !== "failed");
    conversation.exchanges.push(exchange);
    if (conversation.exchanges.length === 1)
      conversation.title = titleFrom(dialogOf(messages).at(-1).content);
    this.#leaf = exchange;
    this.#written.set(conversation.id, conversation);
    const speech = new Speech();
    let isFollowing = true; // the reader's own question is shown in any case
    ask(this.app, conversation, exchange, others.length, () => {
      const isOver = exchange.state !== "running";
      if (this.conversation === conversation) {
        speech.hear(spokenOf(exchange), isOver);
        if (isOver || !exchange.isDrawn) this.draw();
        else this.#views.get(exchange)?.answer.drawText();
        exchange.isDrawn = true;
        if (isFollowing) this.scroll.scrollTop = this.scroll.scrollHeight;
        isFollowing = this.#isAtEnd();
      }
      if (!isOver) return;
      delete exchange.isDrawn;
      this.#written.delete(conversation.id);
      this.app.store.keep(conversation);
      this.app.listChanged();
      if (exchange.error?.status === 401) this.app.askForKey();
      else if (exchange.error && this.conversation !== conversation)
        tell(`\u201c${conversation.title}\u201d: ${exchange.error.message}`);
    });
    this.app.begun(conversation);
    // The button or field that asked is gone with the answer it belonged to.
    if (document.activeElement === document.body) this.scroll.focus({ preventScroll: true });
    return true;
  }

  #isAtEnd() {
    return this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight < NEAR;
  }

  #retry(exchange) {
    const turns = turnsOf(this.conversation.exchanges, exchange);
    this.#ask(withSystem(dialogOf(exchange.messages), readSettings().system), turns.at(-2)?.exchange ?? null);
  }

  #reword(exchange, text) {
    const before = dialogOf(exchange.messages).slice(0, -1);
    const parent = turnsOf(this.conversation.exchanges, exchange).at(-2)?.exchange ?? null;
    return this.#ask(withSystem([...before, { role: "user", content: text }], readSettings().system), parent);
  }

  async #edit(exchange, text) {
    const { conversation } = this;
    if (this.app.features.feedback && exchange.isSaved !== false) await saveEdit(exchange, text);
    exchange.choices[0].edit = text;
    this.app.store.keep(conversation);
  }

  #turn(exchange, by) {
    const { exchanges } = this.conversation;
    const { variants } = turnsOf(exchanges, exchange).at(-1);
    const other = variants[variants.indexOf(exchange) + by];
    if (other) this.#show(newestBelow(exchanges, other), other);
  }

  #show(leaf, focused) {
    this.#leaf = leaf;
    this.draw();
    this.#views.get(focused)?.answer.node.scrollIntoView({ block: "nearest" });
    const [back, on] = this.#views.get(focused)?.answer.turner.querySelectorAll("button") ?? [];
    (on?.disabled ? back : on)?.focus();
  }

  // With the newest other answer to the same prompt.
  async #compare(exchange) {
    const other = this.#comparable(exchange).at(-1);
    const kept = other && (await pickBetween(other, exchange));
    if (kept) this.#show(newestBelow(this.conversation.exchanges, kept), kept);
  }

  #comparable(exchange) {
    if (!this.app.features.feedback) return [];
    const isWhole = (one) => one.state === "done" && one.isSaved !== false && one.reply !== null;
    return this.conversation.exchanges.filter(
      (one) => one !== exchange && isWhole(one) && isWhole(exchange) && answersSame(one, exchange),
    );
  }

  #viewsOf(exchange) {
    if (!this.#views.has(exchange)) {
      const does = {
        retry: (one) => this.#retry(one),
        turn: (one, by) => this.#turn(one, by),
        edit: (one, text) => this.#edit(one, text),
        compare: (one) => this.#compare(one),
      };
      const question = questionView(exchange, (text) => this.#reword(exchange, text));
      this.#views.set(exchange, { question, answer: new AnswerView(exchange, this.app.features, does) });
    }
    return this.#views.get(exchange);
  }

  draw() {
    const turns = turnsOf(this.conversation.exchanges, this.#leaf);
    const nodes = turns.flatMap(({ exchange, variants }) => {
      const { question, answer } = this.#viewsOf(exchange);
      answer.draw(variants.indexOf(exchange), variants.length, this.#comparable(exchange).length > 0);
      return [question, answer.node];
    });
    reconcile(this.turns, nodes);
    this.empty.hidden = nodes.length > 0;
    this.composer.run(Boolean(this.#running));
    this.#drawEmpty();
    this.app.titled(this.conversation);
  }

  #drawEmpty() {
    const { models, features } = this.app;
    const model = this.app.model();
    const found = models.find((one) => one.id === model);
    const kept = features.feedback
      ? "Conversations are kept at this server."
      : "This server keeps no conversations: they stay in this tab.";
    this.empty.replaceChildren(
      el("h2", {}, "What is on your mind?"),
      el(
        "p",
        {},
        found
          ? `${model} reads up to ${found.context_length.toLocaleString("en")} tokens. It may be wrong: check what matters.`
          : "No model can be asked yet.",
      ),
      el("p", { class: "soft" }, kept),
    );
    this.composer.refuse(model ? null : "No model of this server has a chat template");
  }

  // As a file: what is shown (Markdown), or everything (JSON).
  save(kind) {
    const { title, exchanges } = this.conversation;
    const name = title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 50) || "conversation";
    if (kind === "md")
      download(`${name}.md`, asMarkdown(title, turnsOf(exchanges, this.#leaf)), "text/markdown");
    else download(`${name}.json`, `${JSON.stringify(this.conversation, null, 2)}\n`, "application/json");
  }
}
