// Where conversations are kept: at the server where it has a store, else in this tab alone. Both answer alike.

import { call } from "./api.js";
import { randomId, sessionConversations } from "./preferences.js";

const PAGE = 30;

// A conversation without exchanges; the server comes to know it with the first of them. consent: null until then.
export function freshConversation() {
  return {
    id: randomId(),
    title: "New chat",
    consent: null,
    exchanges: [],
    isKnown: false,
  };
}

export function titleFrom(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 57)}...` : line || "New chat";
}

// The server's, of this browser's user.
export class ServerConversations {
  isServer = true;

  async list(before) {
    const query = new URLSearchParams({ limit: PAGE, ...(before ? { before } : {}) });
    const found = await call(`v1/feedback/conversations?${query}`);
    return { data: found.data, hasMore: found.has_more };
  }

  async get(id) {
    const found = await call(`v1/feedback/conversations/${encodeURIComponent(id)}`);
    const exchanges = found.exchanges.map((one) => ({ ...one, state: "done" }));
    return { ...found, exchanges, isKnown: true };
  }

  async change(id, changes) {
    await call(`v1/feedback/conversations/${encodeURIComponent(id)}`, { method: "PATCH", body: changes });
  }

  async remove(id) {
    await call(`v1/feedback/conversations/${encodeURIComponent(id)}`, { method: "DELETE" });
  }

  // The server has kept what it answered already.
  keep() {}
}

// This tab's; gone with it.
export class TabConversations {
  isServer = false;

  #read() {
    try {
      return JSON.parse(sessionConversations.get() ?? "[]");
    } catch {
      return [];
    }
  }

  // The oldest make room where the browser gives no more.
  #write(all) {
    for (let kept = all; !sessionConversations.set(JSON.stringify(kept)) && kept.length > 1;)
      kept = kept.slice(0, -1);
  }

  async list() {
    return { data: this.#read(), hasMore: false };
  }

  async get(id) {
    return this.#read().find((one) => one.id === id) ?? null;
  }

  async change(id, changes) {
    this.#write(this.#read().map((one) => (one.id === id ? { ...one, ...changes } : one)));
  }

  async remove(id) {
    this.#write(this.#read().filter((one) => one.id !== id));
  }

  // Probabilities are left out: they are a hundred times the text.
  keep(conversation) {
    const exchanges = conversation.exchanges
      .filter((one) => one.state !== "running")
      .map((one) => ({ ...one, choices: one.choices.map(({ tokens: _, ...choice }) => choice) }));
    const others = this.#read().filter((one) => one.id !== conversation.id);
    this.#write([{ ...conversation, exchanges }, ...others]);
  }
}
