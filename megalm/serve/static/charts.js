// Small drawings of counts, as wide as their place: letters keep their size. Each stands beside a table with the same
// numbers, and has a name for those who do not see it.

import { el, freshId, svg } from "./dom.js";

const HEIGHT = 190;
const LEFT = 34;
const BOTTOM = 24;

// A round number not below `most`, for the axis: 1, 2 or 5 times a power of ten.
function ceiling(most) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, most)));
  return [1, 2, 5, 10].map((step) => step * power).find((value) => value >= most);
}

function drawing(width, height, title, children) {
  const id = freshId("chart");
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-labelledby": id },
    svg("title", { id }, title),
    ...children,
  );
}

// Columns over days: rows of {day, ...}; series: [[key, class]], the first at the bottom.
export function columnsOverTime(rows, series, title, width) {
  const total = (row) => series.reduce((sum, [key]) => sum + row[key], 0);
  const most = ceiling(Math.max(1, ...rows.map(total)));
  const room = HEIGHT - BOTTOM - 10;
  const step = (width - LEFT) / Math.max(1, rows.length);
  const lines = [0, 0.5, 1].flatMap((part) => {
    const y = 10 + room * (1 - part);
    const label = most * part;
    return [
      svg("line", { x1: LEFT, x2: width, y1: y, y2: y, class: "grid" }),
      Number.isInteger(label)
        ? svg("text", { x: LEFT - 8, y: y + 4, class: "axis end" }, String(label))
        : null,
    ];
  });
  const bars = rows.flatMap((row, place) => {
    let top = HEIGHT - BOTTOM;
    const thick = Math.min(36, step * 0.7);
    return series.map(([key, name]) => {
      const height = (row[key] / most) * room;
      top -= height;
      return svg("rect", {
        x: LEFT + step * (place + 0.5) - thick / 2,
        y: top,
        width: thick,
        height,
        class: name,
      });
    });
  });
  const every = Math.ceil((rows.length * 60) / (width - LEFT)); // a day's name takes 60
  const days = rows.map((row, place) =>
    place % every
      ? null
      : svg(
          "text",
          { x: LEFT + step * (place + 0.5), y: HEIGHT - 6, class: "axis middle" },
          row.day.slice(5),
        ),
  );
  return drawing(width, HEIGHT, title, [...lines, ...bars, ...days]);
}

// Bars beside names: rows of {name, ...}; series as above, the first at the left.
export function barsByName(rows, series, title, width) {
  const left = Math.min(190, width * 0.35);
  const room = width - left - 90; // the counts stand behind
  const letters = Math.floor(left / 7.5);
  const most = Math.max(1, ...rows.map((row) => series.reduce((sum, [key]) => sum + row[key], 0)));
  const parts = rows.flatMap((row, place) => {
    const y = place * 32 + 6;
    let x = left + 10;
    const bars = series.map(([key, name]) => {
      const long = (row[key] / most) * room;
      const bar = svg("rect", { x, y, width: long, height: 20, class: name });
      x += long;
      return bar;
    });
    const count = series.map(([key]) => row[key]).join(" / ");
    const label = row.name.length > letters ? `${row.name.slice(0, letters - 1)}\u2026` : row.name;
    return [
      svg("text", { x: left, y: y + 15, class: "axis end" }, label),
      ...bars,
      svg("text", { x: x + 8, y: y + 15, class: "axis" }, count),
    ];
  });
  return drawing(width, rows.length * 32 + 6, title, parts);
}

// The same numbers. columns: [[key, heading]], the first names the row.
export function table(rows, columns, caption) {
  const cells = (row) =>
    columns.map(([key], place) =>
      place ? el("td", { class: "number" }, String(row[key])) : el("th", { scope: "row" }, String(row[key])),
    );
  return el(
    "div",
    { class: "table-place", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", { class: "unseen" }, caption),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          ...columns.map(([, name], place) =>
            el("th", { scope: "col", class: place ? "number" : null }, name),
          ),
        ),
      ),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row)))),
    ),
  );
}
