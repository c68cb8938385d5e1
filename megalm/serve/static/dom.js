// Makes elements. Text always becomes a text node: nothing that people or models write is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

// Strokes on a field of 24 x 24.
const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v11H9zM6 15H5V4h10v2",
  retry: "M19 12a7 7 0 1 1-2.3-5.2M19 4v4h-4",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  up: "M7 11v9H4v-9zM7 12l4-8c1.7 0 2.6 1.2 2.2 3l-.6 3H19c1.2 0 1.8.9 1.5 2l-1.7 6c-.3 1-1 2-2.3 2H7",
  down: "M7 13V4H4v9zM7 12l4 8c1.7 0 2.6-1.2 2.2-3l-.6-3H19c1.2 0 1.8-.9 1.5-2l-1.7-6c-.3-1-1-2-2.3-2H7",
  tokens: "M4 19V9M9.3 19V5M14.6 19v-7M20 19v-4",
  compare: "M4 5h6v14H4zM14 5h6v14h-6z",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  bin: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M19 5l-2 2M7 17l-2 2",
  moon: "M19 14.5A8 8 0 0 1 9.5 5a8 8 0 1 0 9.5 9.5z",
};

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// An HTML element; `on` holds listeners, children are nodes or texts.
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// The same for drawings.
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

export function icon(name) {
  const path = svg("path", { d: ICONS[name] });
  return svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" }, path);
}

// A button with an icon alone; `label` is its name and its tooltip.
export function iconButton(name, label, click, attributes = {}) {
  const more = { class: "icon-button", ...attributes };
  return el(
    "button",
    { type: "button", "aria-label": label, title: label, on: { click }, ...more },
    icon(name),
  );
}

export function button(text, click, attributes = {}) {
  return el("button", { type: "button", class: "button", on: { click }, ...attributes }, text);
}

export const byId = (id) => document.getElementById(id);

let count = 0;

// An id of the page's own, for labels.
export function freshId(prefix) {
  count += 1;
  return `${prefix}-${count}`;
}

// Makes `nodes` the children of `parent` and leaves in place what is there: whatever has the focus keeps it.
export function reconcile(parent, nodes) {
  const held = document.activeElement;
  const wanted = new Set(nodes);
  for (const node of [...parent.childNodes]) if (!wanted.has(node)) node.remove();
  nodes.forEach((node, place) => {
    if (parent.childNodes[place] !== node) parent.insertBefore(node, parent.childNodes[place] ?? null);
  });
  if (held !== document.activeElement && parent.contains(held)) held.focus({ preventScroll: true }); // what was moved
}

// Hands the browser a file to save.
export function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

const status = byId("status");
let timer = null;

// For a moment, where screen readers hear it too. What lies outside an open dialog is neither seen well nor heard.
export function tell(text) {
  const [dialog] = [...document.querySelectorAll("dialog[open]")].slice(-1);
  (dialog ?? document.body).append(status);
  status.textContent = text;
  status.classList.add("shown");
  clearTimeout(timer);
  timer = setTimeout(() => {
    status.classList.remove("shown");
    status.textContent = "";
  }, 5000);
}

// Into the clipboard, which browsers give to pages of https and of this machine alone.
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    tell("Copied.");
  } catch {
    tell("The browser does not let the page copy.");
  }
}
