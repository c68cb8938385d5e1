// What people have said about the answers: over time, by model, by reason; and files of one's own feedback.

import { call, callText } from "./api.js";
import { byModel, byReason, card, overTime, tiles } from "./counts.js";
import { button, download, el, reconcile, tell } from "./dom.js";

const CARD_EDGE = 19;
const SPANS = [7, 30, 90];
const FORMS = [
  ["sft", "Good answers and edits (SFT)"],
  ["preference", "Pairs of answers (DPO, reward)"],
  ["kto", "Single ratings (KTO)"],
];

export class DashboardView {
  #asked = 0;
  #figures = [];
  #opened = new Set(); // tables, by their titles
  #drawnWidth = null;

  constructor(app) {
    this.app = app;
    this.days = el(
      "select",
      { on: { change: () => this.draw() } },
      ...SPANS.map((days) => el("option", { value: String(days) }, `last ${days} days`)),
    );
    this.days.value = "30";
    this.head = el(
      "div",
      { class: "dashboard-head" },
      el("h2", {}, "What readers say"),
      el("label", {}, el("span", { class: "unseen" }, "Time"), this.days),
    );
    this.content = el("div", { class: "dashboard" }, this.head);
    window.addEventListener("resize", () => {
      if (!this.node.hidden) this.#fit();
    });
    this.node = el(
      "section",
      { class: "scroll page", "aria-label": "Feedback", tabindex: "-1" },
      this.content,
    );
  }

  focus() {
    (this.head.hidden ? this.node : this.days).focus();
  }

  async draw() {
    const number = (this.#asked += 1);
    this.head.hidden = !this.app.features.feedback;
    if (!this.app.features.feedback) {
      const how = el(
        "p",
        {},
        "This server keeps no feedback. Start it with ",
        el("code", {}, "megalm serve --feedback sqlite:///feedback.db"),
        " to rate answers, compare them and see the counts here.",
      );
      this.#replace([el("h2", {}, "No feedback is kept"), how]);
      return;
    }
    let parts;
    try {
      parts = partsOf(await call(`v1/feedback/summary?days=${this.days.value}`));
    } catch (error) {
      parts = [el("p", { class: "note bad" }, error.message), button("Try again", () => this.draw())];
    }
    if (number === this.#asked) this.#replace(parts); // otherwise another span is wanted by now
  }

  // parts: elements, and figures {node, title, fit(width)}.
  #replace(parts) {
    const isHeld = this.content.contains(document.activeElement);
    this.#figures = parts.filter((part) => part.fit);
    reconcile(this.content, [this.head, ...parts.map((part) => part.node ?? part)]);
    for (const { node, title } of this.#figures) {
      const details = node.querySelector("details");
      details.open = this.#opened.has(title);
      details.addEventListener("toggle", () =>
        details.open ? this.#opened.add(title) : this.#opened.delete(title),
      );
    }
    this.#drawnWidth = null;
    this.#fit();
    if (isHeld && document.activeElement === document.body) this.focus();
  }

  // Of a chart, in pixels.
  get #width() {
    return Math.max(240, this.content.clientWidth - 2 * CARD_EDGE);
  }

  // Charts are drawn for a width: their letters keep their size.
  #fit() {
    const width = this.#width;
    if (width === this.#drawnWidth) return;
    this.#drawnWidth = width;
    for (const figure of this.#figures) figure.fit(width);
  }
}

function partsOf(found) {
  return [
    tiles(found),
    overTime(found.by_day),
    byModel(found.by_model),
    byReason(found.by_reason),
    exports(),
  ];
}

function exports() {
  const save = async (form) => {
    try {
      const text = await callText(`v1/feedback/export?form=${form}`);
      if (!text.trim()) {
        tell("There is nothing of this kind yet.");
        return;
      }
      download(`feedback-${form}.jsonl`, text, "application/jsonl");
      tell(`Saved: ${text.trim().split("\n").length} lines.`);
    } catch (error) {
      tell(`Nothing was saved: ${error.message}`);
    }
  };
  const buttons = FORMS.map(([form, words]) => button(words, () => save(form), { "data-form": form }));
  return card("Your own feedback as a file", [
    el("p", { class: "soft" }, "JSON lines that megalm trains on. Personal data are masked."),
    el("div", { class: "row" }, ...buttons),
  ]);
}
