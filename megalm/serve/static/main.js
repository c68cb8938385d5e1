// Puts the page together: what the server can, which view is shown, and what all views share.

import { call } from "./api.js";
import { ChatView } from "./chat.js";
import { CompareView } from "./compare.js";
import { freshConversation, ServerConversations, TabConversations } from "./conversations.js";
import { DashboardView } from "./dashboard.js";
import { byId, el, icon, tell } from "./dom.js";
import { chooseTheme, isDark, readSettings, whenForgotten, writeSettings } from "./preferences.js";
import { openSettings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { stopAll } from "./writing.js";

const NOTHING = { feedback: false, moderation: false, reasons: { up: [], down: [] } };
const TITLES = { compare: "Compare answers", feedback: "Feedback" };

const app = {
  features: NOTHING,
  models: [],
  store: new TabConversations(),
  model: () => byId("model").value || null,
  conversation: () => chat.conversation,
  written: () => chat.written,
  // What settings are about.
  subject: () => views[shown].conversation ?? chat.conversation,
  isChatShown: () => shown === "chat",
  save: (kind) => chat.save(kind),
  askForKey: () => openSettings(app, "key"),
  // Another key: what was said under the former one is not sent under it.
  reload() {
    stopAll();
    views.compare.clear();
    if (location.hash === addressOf(chat.conversation)) history.replaceState(null, "", "#/chat");
    chat.open(freshConversation());
    start();
  },
  themed: drawTheme,
  // An answer is being written: the conversation has its own address, unless the reader is on the way to another one.
  begun(conversation) {
    if (!awaited) history.replaceState(null, "", addressOf(conversation));
    sidebar.draw();
  },
  listChanged: () => sidebar.refresh(),
  titled(conversation) {
    if (shown === "chat") setTitle(conversation.title);
  },
  renamed(id, title) {
    for (const one of [chat.conversation, ...chat.written]) if (one.id === id) one.title = title;
    if (chat.conversation.id === id) chat.draw();
  },
  removed(id) {
    if (views.compare.conversation?.id === id) views.compare.clear();
    if (chat.conversation.id === id) begin();
  },
  forget() {
    views.compare.clear();
    begin();
    sidebar.refresh();
  },
};

const addressOf = ({ id, exchanges }) => (exchanges.length ? `#/chat/${id}` : "#/chat");

let shown = "chat";
let awaited = null; // the conversation that has been asked for
const chat = new ChatView(app);
const views = { chat, compare: new CompareView(app), feedback: new DashboardView(app) };
const sidebar = new Sidebar(app);

function setTitle(title) {
  byId("title").textContent = title;
  document.title = title === "New chat" ? "megalm" : `${title} \u2013 megalm`;
}

// An empty conversation.
function begin() {
  chat.open(freshConversation());
  if (location.hash === "#/chat") show("chat");
  else location.hash = "#/chat";
}

function show(view) {
  shown = view;
  for (const [name, one] of Object.entries(views)) one.node.hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  byId("model-choice").hidden = view !== "chat";
  setTitle(TITLES[view] ?? chat.conversation.title);
  if (view !== "chat") views[view].draw();
  if (!document.body.classList.contains("side-open")) views[view].focus();
  sidebar.draw();
}

async function route() {
  const address = location.hash;
  const [, view = "chat", wanted] = address.split("/");
  awaited = null;
  if (view === "chat" && wanted && wanted !== chat.conversation.id) {
    awaited = wanted;
    const found = chat.written.find((one) => one.id === wanted) ?? (await read(wanted));
    if (location.hash !== address) return; // the reader has gone on meanwhile
    awaited = null;
    // Until a key is given the address stays.
    if (!found && app.models.length) history.replaceState(null, "", addressOf(chat.conversation));
    if (found && found.id !== chat.conversation.id) chat.open(found);
  }
  show(view in views ? view : "chat");
}

// A conversation from the store, null where that cannot be.
async function read(id) {
  try {
    const found = await app.store.get(id);
    if (!found) tell("There is no such conversation in this tab.");
    return found;
  } catch (error) {
    tell(error.message);
    return null;
  }
}

function drawTheme() {
  const place = byId("theme");
  const label = isDark() ? "Light colours" : "Dark colours";
  place.replaceChildren(icon(isDark() ? "sun" : "moon"));
  place.setAttribute("aria-label", label);
  place.title = label;
}

function drawModels() {
  const select = byId("model");
  const names = app.models.filter((model) => model.chat).map((model) => model.id);
  select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  const chosen = readSettings().model;
  if (names.includes(chosen)) select.value = chosen;
}

// Ask the server what it has; once more after the key has changed.
async function start() {
  try {
    app.models = (await call("v1/models")).data;
    app.features = await call("v1/features");
  } catch (error) {
    if (error.status === 401) app.askForKey();
    tell(error.message);
  }
  app.store = app.features.feedback ? new ServerConversations() : new TabConversations();
  byId("kept").textContent = app.features.feedback ? "Kept at this server" : "Kept in this tab only";
  drawModels();
  chat.open(chat.conversation);
  await sidebar.refresh();
  await route();
}

function listen() {
  byId("new-chat").addEventListener("click", () => {
    sidebar.close();
    begin();
  });
  byId("open-settings").addEventListener("click", () => openSettings(app));
  byId("theme").addEventListener("click", () => {
    chooseTheme(isDark() ? "light" : "dark");
    drawTheme();
  });
  byId("model").addEventListener("change", (event) => {
    writeSettings({ model: event.target.value });
    chat.draw();
  });
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address holds the view
    byId("main").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (sidebar.isOpen) sidebar.close();
    else views[shown].stop?.();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawTheme);
  window.addEventListener("hashchange", route);
  whenForgotten(() => {
    if (!app.features.feedback) return; // then there is nothing but this tab's own
    stopAll();
    app.forget();
  });
}

byId("main").append(...Object.values(views).map((view) => view.node));
listen();
drawTheme();
await start();
