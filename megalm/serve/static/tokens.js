// An answer as its tokens: how likely each was, and what else might have stood there.

import { el, freshId } from "./dom.js";

const BANDS = [0.9, 0.6, 0.3, 0.1]; // the likelier, the paler
const NAMES = ["90% and more", "60 to 90%", "30 to 60%", "10 to 30%", "less than 10%"];

function bandOf(probability) {
  const found = BANDS.findIndex((least) => probability >= least);
  return found < 0 ? BANDS.length : found;
}

const hex = (number) => `<${number.toString(16).padStart(2, "0")}>`;

// A token as one can read it: spaces and line ends are seen, bytes of half a character and control characters are numbers.
export function readable(entry) {
  if (entry.token.startsWith("bytes:")) return (entry.bytes ?? []).map(hex).join("");
  const seen = entry.token.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5").replace(/^ | $/g, "\u00b7");
  return seen.replace(/\p{Cc}/gu, (sign) => hex(sign.charCodeAt(0))) || "(end)";
}

function percent(logprob) {
  const share = Math.exp(logprob) * 100;
  if (share >= 10) return `${share.toFixed(0)}%`;
  return share >= 0.01 ? `${share.toFixed(share >= 1 ? 1 : 2)}%` : "<0.01%";
}

// The view of `tokens` (of the chat API's logprobs.content). Arrow keys go from token to token, Home and End to the ends.
export function tokenView(tokens) {
  const panel = el("div", { class: "token-panel", id: freshId("token"), "aria-live": "polite" });
  const chips = tokens.map((entry, place) => {
    const shown = readable(entry);
    return el(
      "button",
      {
        type: "button",
        class: `token band-${bandOf(Math.exp(entry.logprob))}`,
        tabindex: place ? "-1" : "0",
        "aria-label": `${shown}, ${percent(entry.logprob)}`,
        on: { focus: () => show(place), mouseenter: () => show(place), click: () => show(place) },
      },
      shown,
    );
  });

  function show(place) {
    chips.forEach((chip, other) => {
      chip.tabIndex = other === place ? 0 : -1;
      chip.classList.toggle("shown", other === place);
    });
    panel.replaceChildren(...alternatives(tokens[place]));
  }

  function step(event) {
    const here = chips.indexOf(document.activeElement);
    const places = {
      ArrowRight: here + 1,
      ArrowDown: here + 1,
      ArrowLeft: here - 1,
      ArrowUp: here - 1,
      Home: 0,
      End: chips.length - 1,
    };
    if (here < 0 || !(event.key in places)) return;
    event.preventDefault();
    chips[Math.max(0, Math.min(chips.length - 1, places[event.key]))].focus();
  }

  const row = el(
    "div",
    {
      class: "token-row",
      role: "group",
      "aria-label": "Tokens of the answer; arrow keys go through them",
      on: { keydown: step },
    },
    ...chips,
  );
  const mean = tokens.reduce((sum, entry) => sum + entry.logprob, 0) / tokens.length;
  panel.append(
    el(
      "p",
      {},
      `${tokens.length} tokens; a token had ${percent(mean)} on (geometric) average. Point at one to see its alternatives.`,
    ),
  );
  return el("section", { class: "tokens", "aria-label": "Token probabilities" }, row, legend(), panel);
}

function legend() {
  const entries = NAMES.map((name, band) =>
    el("li", {}, el("span", { class: `token band-${band}`, "aria-hidden": "true" }, "\u2007"), name),
  );
  return el("ul", { class: "legend", "aria-label": "Colours: probability of a token" }, ...entries);
}

function alternatives(entry) {
  const others = (entry.top_logprobs ?? []).slice();
  const rank = others.findIndex(
    (one) => one.token === entry.token && String(one.bytes) === String(entry.bytes),
  );
  if (rank < 0) others.push(entry);
  const rows = others.map((one) => {
    const isTaken = one === entry || one === others[rank];
    return el(
      "tr",
      isTaken ? { class: "taken" } : {},
      el(
        "th",
        { scope: "row" },
        el("code", {}, readable(one)),
        isTaken ? el("span", { class: "tag" }, "taken") : null,
      ),
      el("td", {}, el("progress", { max: "1", value: Math.exp(one.logprob), "aria-hidden": "true" })),
      el("td", { class: "number" }, percent(one.logprob)),
    );
  });
  const place =
    rank < 0
      ? `not among the ${others.length - 1} likeliest here`
      : rank
        ? `the likeliest but ${rank}`
        : "the likeliest here";
  const head = el(
    "caption",
    {},
    "The token ",
    el("code", {}, readable(entry)),
    ` had ${percent(entry.logprob)}: ${place}`,
  );
  return [el("table", {}, head, el("tbody", {}, ...rows))];
}
