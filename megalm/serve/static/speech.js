// Lets screen readers hear an answer in whole sentences: piece by piece would be noise.

import { byId, el } from "./dom.js";

const END = /[.!?\u2026\u3002]["')\]]*\s|\n/g;

// Follows one answer.
export class Speech {
  #said = 0;

  constructor() {
    byId("spoken").replaceChildren();
  }

  // `text`: all of the answer so far; isOver: nothing more comes.
  hear(text, isOver) {
    const rest = text.slice(this.#said);
    const ends = [...rest.matchAll(END)];
    const length = isOver ? rest.length : ends.length ? ends.at(-1).index + ends.at(-1)[0].length : 0;
    const sentence = rest.slice(0, length).trim();
    this.#said += length;
    if (sentence) byId("spoken").append(el("p", {}, sentence));
  }
}
