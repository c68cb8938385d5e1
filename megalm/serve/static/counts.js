// The counts of the summary as cards: tiles, and charts over time, by model, by reason, each {node, title, fit(width)}.

import { barsByName, columnsOverTime, table } from "./charts.js";
import { el } from "./dom.js";

export function card(title, children) {
  return el("section", { class: "card" }, el("h3", {}, title), ...children);
}

// A chart, what its colours mean, and the numbers for those who want them. chartOf: of a width.
function figure(title, chartOf, colours, numbers) {
  const place = el("div", {});
  const legend = el(
    "ul",
    { class: "legend" },
    ...colours.map(([name, words]) =>
      el("li", {}, el("span", { class: `swatch ${name}`, "aria-hidden": "true" }), words),
    ),
  );
  const node = card(title, [place, legend, el("details", {}, el("summary", {}, "As a table"), numbers)]);
  return { node, title, fit: (width) => place.replaceChildren(chartOf(width)) };
}

export function tiles({ totals, by_reason: reasons }) {
  const rated = totals.up + totals.down;
  const unsafe = reasons.filter((row) => row.reason === "unsafe").reduce((sum, row) => sum + row.count, 0);
  const shown = [
    ["Answers", totals.exchanges],
    ["Rated", rated],
    ["Of them good", rated ? `${Math.round((100 * totals.up) / rated)}%` : "\u2013"],
    ["Compared", totals.comparisons],
    ["Edited", totals.edits],
    ["Called unsafe", unsafe],
  ];
  return el(
    "dl",
    { class: "tiles" },
    ...shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))),
  );
}

const THUMBS = [
  ["up", "good"],
  ["down", "bad-fill"],
];
const THUMB_WORDS = [
  ["good", "good"],
  ["bad-fill", "bad"],
];

export function overTime(rows) {
  if (!rows.length) return card("Ratings over time", [el("p", { class: "soft" }, "No rating yet.")]);
  const columns = [
    ["day", "Day"],
    ["up", "Good"],
    ["down", "Bad"],
    ["comparisons", "Comparisons"],
    ["edits", "Edits"],
    ["exchanges", "Answers"],
  ];
  const sum = (key) => rows.reduce((all, row) => all + row[key], 0);
  const title = `Ratings a day: ${sum("up")} good and ${sum("down")} bad ones over ${rows.length} days`;
  return figure(
    "Ratings over time",
    (width) => columnsOverTime(rows, THUMBS, title, width),
    THUMB_WORDS,
    table(rows, columns, "Feedback by day"),
  );
}

export function byModel(found) {
  const rows = found.map((row) => ({ ...row, name: row.model }));
  if (!rows.length) return card("By model", [el("p", { class: "soft" }, "No rating yet.")]);
  const columns = [
    ["name", "Model"],
    ["up", "Good"],
    ["down", "Bad"],
    ["wins", "Wins"],
    ["losses", "Losses"],
    ["ties", "Ties"],
  ];
  const outcomes = [
    ["wins", "good"],
    ["ties", "even"],
    ["losses", "bad-fill"],
  ];
  const numbers = table(rows, columns, "Feedback by model");
  const charts = (width) => {
    const half = width < 520 ? width : (width - 24) / 2; // beside each other where there is room
    const thumbs = barsByName(rows, THUMBS, `Good and bad ratings of ${rows.length} models`, half);
    const picks = barsByName(rows, outcomes, `Wins, ties and losses of ${rows.length} models`, half);
    return el(
      "div",
      { class: "pair" },
      el("div", {}, el("h4", {}, "Ratings"), thumbs),
      el("div", {}, el("h4", {}, "Comparisons"), picks),
    );
  };
  return figure(
    "By model",
    charts,
    [
      ["good", "good, won"],
      ["even", "tie"],
      ["bad-fill", "bad, lost"],
    ],
    numbers,
  );
}

export function byReason(found) {
  const rows = found.map((row) => ({
    ...row,
    name: row.reason,
    up: row.value > 0 ? row.count : 0,
    down: row.value < 0 ? row.count : 0,
    side: row.value > 0 ? "good" : "bad",
  }));
  if (!rows.length) return card("By reason", [el("p", { class: "soft" }, "No reason yet.")]);
  const columns = [
    ["name", "Reason"],
    ["side", "Rating"],
    ["count", "Count"],
  ];
  const most = rows.reduce((best, row) => (row.count > best.count ? row : best));
  const chart = (width) =>
    barsByName(rows, THUMBS, `Reasons of ratings; the most frequent is ${most.name}`, width);
  return figure("By reason", chart, THUMB_WORDS, table(rows, columns, "Feedback by reason"));
}
