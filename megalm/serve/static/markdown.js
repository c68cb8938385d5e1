// Shows the plain parts of Markdown, made of elements: what is not understood stays text, and HTML is text.

import { button, copy, el } from "./dom.js";

const DEEPEST = 6; // lists in lists, marks in marks: who writes a million asterisks gets text

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const ITEM = /^ {0,3}(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const RULE = /^ {0,3}(?:-{3,}|\*{3,}|_{3,})\s*$/;

// The elements of a text.
export function markdown(text) {
  return blocks(text.replaceAll("\r\n", "\n").split("\n"), 0);
}

function blocks(lines, depth) {
  const found = [];
  let place = 0;
  while (place < lines.length) {
    const line = lines[place];
    if (!line.trim()) {
      place += 1;
      continue;
    }
    const read = [fence, rule, heading, quote, list, paragraph].map(
      (kind) => () => kind(lines, place, depth),
    );
    for (const attempt of read) {
      const block = attempt();
      if (!block) continue;
      found.push(block.node);
      place = block.end;
      break;
    }
  }
  return found;
}

function fence(lines, start) {
  const opening = FENCE.exec(lines[start]);
  if (!opening) return null;
  let end = start + 1;
  while (end < lines.length && !lines[end].trimStart().startsWith(opening[1])) end += 1;
  const code = lines.slice(start + 1, end).join("\n");
  const copying = button("Copy", () => copy(code), {
    class: "button small",
    "aria-label": "Copy the code",
  });
  const head = el("div", { class: "code-head" }, el("span", {}, opening[2] || "text"), copying);
  const body = el("pre", { tabindex: "0", role: "region", "aria-label": "Code" }, el("code", {}, code));
  return { node: el("div", { class: "code" }, head, body), end: end + 1 }; // a fence may be open still
}

function rule(lines, start) {
  return RULE.test(lines[start]) ? { node: el("hr"), end: start + 1 } : null;
}

function heading(lines, start) {
  const found = HEADING.exec(lines[start]);
  if (!found) return null;
  // The page's own headings are 1 and 2; the answer's begin below them.
  const level = Math.min(6, found[1].length + 2);
  return { node: el(`h${level}`, {}, ...inline(found[2], 0)), end: start + 1 };
}

function quote(lines, start, depth) {
  if (!QUOTE.test(lines[start]) || depth >= DEEPEST) return null;
  let end = start;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(start, end).map((line) => QUOTE.exec(line)[1]);
  return { node: el("blockquote", {}, ...blocks(inner, depth + 1)), end };
}

function list(lines, start, depth) {
  const first = ITEM.exec(lines[start]);
  if (!first || depth >= DEEPEST) return null;
  const isOrdered = first[2] !== undefined;
  const items = [];
  let end = start;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || (item[2] !== undefined) !== isOrdered || RULE.test(lines[end])) break;
    const own = [item[3]];
    end += 1;
    while (end < lines.length && (/^(?: {2,}|\t)/.test(lines[end]) || continues(lines, end))) {
      own.push(lines[end].replace(/^(?: {1,4}|\t)/, ""));
      end += 1;
    }
    items.push(
      item[3] === own.join("\n")
        ? el("li", {}, ...inline(item[3], 0))
        : el("li", {}, ...blocks(own, depth + 1)),
    );
  }
  const node = isOrdered
    ? el("ol", first[2] === "1" ? {} : { start: Number(first[2]) }, ...items)
    : el("ul", {}, ...items);
  return { node, end };
}

// Whether an empty line lies within a list: more of it follows.
function continues(lines, place) {
  return !lines[place].trim() && place + 1 < lines.length && /^(?: {2,}|\t)/.test(lines[place + 1]);
}

function paragraph(lines, start, depth) {
  let end = start + 1;
  const isOther = (line) =>
    !line.trim() ||
    FENCE.test(line) ||
    HEADING.test(line) ||
    RULE.test(line) ||
    (depth < DEEPEST && (QUOTE.test(line) || ITEM.test(line)));
  while (end < lines.length && !isOther(lines[end])) end += 1;
  const parts = lines
    .slice(start, end)
    .flatMap((line, place) => (place ? [el("br"), ...inline(line, 0)] : inline(line, 0)));
  return { node: el("p", {}, ...parts), end };
}

const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["*", "em"],
  ["_", "em"],
];

// The nodes of a line.
function inline(text, depth) {
  const nodes = [];
  const missing = new Set(); // marks that do not close: looked for once, or a long row of them took squared time
  let plain = "";
  let place = 0;
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  while (place < text.length) {
    const found = code(text, place, missing) ?? link(text, place) ?? mark(text, place, depth, missing);
    if (found) {
      flush();
      nodes.push(found.node);
      place = found.end;
    } else {
      plain += text[place];
      place += 1;
    }
  }
  flush();
  return nodes;
}

function code(text, place, missing) {
  if (text[place] !== "`" || missing.has("`")) return null;
  const end = text.indexOf("`", place + 1);
  if (end < 0) missing.add("`");
  return end > place + 1 ? { node: el("code", {}, text.slice(place + 1, end)), end: end + 1 } : null;
}

// Only http and https can be followed; everything else, javascript: above all, stays text.
function link(text, place) {
  if (text[place] !== "[") return null;
  const found = /^\[([^\]\n]{1,300})\]\((https?:\/\/[^\s()<>"]{1,2000})\)/.exec(
    text.slice(place, place + 2400),
  );
  if (!found || !URL.canParse(found[2])) return null;
  const node = el("a", { href: found[2], rel: "noopener noreferrer nofollow", target: "_blank" }, found[1]);
  return { node, end: place + found[0].length };
}

function mark(text, place, depth, missing) {
  if (depth >= DEEPEST) return null;
  for (const [sign, tag] of MARKS) {
    if (missing.has(sign) || !text.startsWith(sign, place)) continue;
    const start = place + sign.length;
    if (!text[start] || /\s/.test(text[start]) || text[start] === sign[0]) continue;
    if (sign[0] === "_" && place > 0 && /\w/.test(text[place - 1])) continue; // snake_case is no emphasis
    const end = text.indexOf(sign, start + 1);
    if (end < 0) missing.add(sign);
    else if (!/\s/.test(text[end - 1])) {
      return { node: el(tag, {}, ...inline(text.slice(start, end), depth + 1)), end: end + sign.length };
    }
  }
  return null;
}
