// One turn on the page: what was asked, and the answer with all that can be done with it.

import { call } from "./api.js";
import { button, copy, el, iconButton, tell } from "./dom.js";
import { markdown } from "./markdown.js";
import { Rating } from "./rating.js";
import { dialogOf, textOf } from "./thread.js";
import { tokenView } from "./tokens.js";

const ENDS = {
  length: "Cut off at the token limit.",
  content_filter: "Ended by the content filter.",
  interrupted: "Stopped.",
};

// What the reader asked; `resend` takes another wording, or answers false.
export function questionView(exchange, resend) {
  const text = dialogOf(exchange.messages).at(-1).content;
  const bubble = el("div", { class: "bubble" }, text);
  const edit = iconButton("edit", "Edit this message", () => {
    const leave = () => {
      place.replaceChildren(bubble, edit);
      edit.focus();
    };
    const send = (wording) => {
      if (resend(wording)) leave(); // this wording can be turned back to
    };
    place.replaceChildren(editor(text, "Send", send, leave));
    place.querySelector("textarea").focus();
  });
  const place = el("div", { class: "question" }, bubble, edit);
  return el("article", { class: "turn", "aria-label": "You" }, place);
}

// A field with `text` in place of it; `taken` gets the new one, `leave` puts back what was there.
function editor(text, act, taken, leave) {
  const field = el("textarea", {
    rows: String(Math.min(12, text.split("\n").length + 1)),
    value: text,
    "aria-label": "New text",
  });
  const form = el(
    "form",
    {
      class: "card editor",
      on: {
        submit: (event) => {
          event.preventDefault();
          if (field.value.trim()) taken(field.value);
        },
        keydown: (event) => {
          if (event.key === "Escape") {
            event.stopPropagation();
            leave();
          } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
        },
      },
    },
    field,
    el(
      "div",
      { class: "row end" },
      button("Cancel", leave, { class: "button quiet" }),
      el("button", { class: "button primary" }, act),
    ),
  );
  return form;
}

// An answer. does: {retry, turn, compare} of the chat; features: what the server can.
export class AnswerView {
  #isDrawn = false;
  #showsTokens = false;

  constructor(exchange, features, does) {
    Object.assign(this, { exchange, features, does, choice: exchange.choices[0] });
    this.body = el("div", { class: "answer-body" });
    this.note = el("p", { class: "note" });
    this.below = el("div", {});
    this.actions = el("div", { class: "actions", role: "group", "aria-label": "Actions on this answer" });
    this.rating = new Rating(exchange, features.reasons);
    this.tokens = iconButton("tokens", "Token probabilities", () => this.#toggleTokens(), {
      "aria-expanded": "false",
    });
    this.edit = iconButton("edit", "Edit this answer", () => this.#edit());
    this.compare = iconButton("compare", "Compare with another answer", () => does.compare(exchange));
    this.turner = el("span", { class: "turner" });
    const name = el("p", { class: "who" }, exchange.model || "Answer");
    const tools = el("div", { class: "tools" }, this.actions, this.turner);
    this.node = el(
      "article",
      { class: "turn answer", "aria-label": `Answer of ${exchange.model}` },
      name,
      this.body,
      this.below,
      this.note,
      tools,
      this.rating.place,
    );
  }

  // Show the text as it is now. place, count: of the answers in this place; isComparable: another one answers the same.
  draw(place, count, isComparable) {
    const isRunning = this.exchange.state === "running";
    this.node.setAttribute("aria-busy", String(isRunning));
    if (isRunning || !this.#isDrawn) this.drawText();
    this.note.textContent = this.#noteText();
    this.note.classList.toggle("bad", this.exchange.state === "failed");
    if (isRunning) return;
    this.rating.draw();
    if (!this.actions.childNodes.length) this.actions.append(...this.#buttons());
    this.compare.hidden = !isComparable;
    this.#drawTurner(place, count);
    this.#isDrawn = true;
  }

  drawText() {
    const text = textOf(this.exchange);
    const waiting = el(
      "span",
      { class: "waiting", role: "img", "aria-label": "The answer is being written" },
      el("i"),
      el("i"),
      el("i"),
    );
    this.body.replaceChildren(...(text || this.exchange.state !== "running" ? markdown(text) : [waiting]));
    const { refusal } = this.choice;
    if (refusal && refusal !== text) this.body.append(el("p", { class: "refusal" }, refusal));
    if (this.choice.edit != null) this.body.append(el("p", { class: "note" }, "Edited by you."));
  }

  #buttons() {
    const isSaved = this.features.feedback && this.exchange.isSaved !== false && this.exchange.reply !== null;
    const found = [iconButton("copy", "Copy", () => copy(textOf(this.exchange)))];
    if (this.exchange.reply !== null)
      found.push(iconButton("retry", "Try again", () => this.does.retry(this.exchange)));
    if (this.exchange.state !== "failed" && this.exchange.reply !== null) found.push(this.edit);
    if (this.choice.tokens?.length) found.push(this.tokens);
    found.push(this.compare);
    if (isSaved) found.push(...this.rating.buttons);
    return found;
  }

  #noteText() {
    const { state, error, seconds, tokens } = this.exchange;
    if (state === "failed") return error.message;
    if (state === "stopped") return ENDS.interrupted;
    const parts = [ENDS[this.choice.finish_reason]];
    if (seconds) parts.push(`${tokens ? `${tokens} tokens in ` : ""}${seconds.toFixed(1)} s`);
    return parts.filter(Boolean).join(" ");
  }

  #drawTurner(place, count) {
    if (count < 2) {
      this.turner.replaceChildren();
      return;
    }
    const shown = el("span", { "aria-label": `Answer ${place + 1} of ${count}` }, `${place + 1} / ${count}`);
    const step = (name, label, by) =>
      iconButton(name, label, () => this.does.turn(this.exchange, by), {
        disabled: place + by < 0 || place + by >= count,
      });
    this.turner.replaceChildren(step("left", "Previous answer", -1), shown, step("right", "Next answer", 1));
  }

  #toggleTokens() {
    this.#showsTokens = !this.#showsTokens;
    this.tokens.setAttribute("aria-expanded", String(this.#showsTokens));
    this.body.hidden = this.#showsTokens;
    this.below.replaceChildren(...(this.#showsTokens ? [tokenView(this.choice.tokens)] : []));
  }

  #edit() {
    if (this.#showsTokens) this.#toggleTokens();
    const leave = () => {
      this.drawText();
      this.edit.focus();
    };
    const save = async (text) => {
      try {
        await this.does.edit(this.exchange, text);
      } catch (error) {
        tell(`The edit was not saved: ${error.message}`);
        return;
      }
      this.choice.edit = text;
      leave();
      tell("Saved: your version of the answer.");
    };
    this.body.replaceChildren(editor(textOf(this.exchange), "Save", save, leave));
    this.body.querySelector("textarea").focus();
  }
}

// Sends an edit to a server that keeps it.
export async function saveEdit(exchange, text) {
  await call("v1/feedback/edits", {
    body: { reply: exchange.reply, choice: exchange.choices[0].index ?? 0, content: text },
  });
}
