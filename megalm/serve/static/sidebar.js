// The list of conversations, and the drawer in which it lies on narrow screens.

import { asked, confirmed } from "./dialogs.js";
import { byId, el, icon, iconButton, reconcile, tell } from "./dom.js";
import { isWriting } from "./writing.js";

const NARROW = "(max-width: 52rem)"; // as in style.css

export class Sidebar {
  #shown = [];
  #items = new Map(); // by a conversation's id: whatever has the focus keeps it
  #wanted = 1; // how many are to be shown, if there are as many
  #reads = 0;
  #none = el("li", { class: "soft" }, "None yet.");

  // app: {store, conversation(), isChatShown(), written(), removed(id), renamed(id, title)}
  constructor(app) {
    this.app = app;
    this.list = byId("conversations");
    this.more = byId("more");
    this.more.addEventListener("click", () => {
      this.#wanted = this.#shown.length + 1;
      this.refresh();
    });
    for (const [id, name] of [
      ["open-side", "menu"],
      ["close-side", "close"],
    ])
      byId(id).append(icon(name));
    byId("open-side").addEventListener("click", () => this.open());
    byId("close-side").addEventListener("click", () => this.close());
    byId("veil").addEventListener("click", () => this.close());
    byId("side").addEventListener("click", (event) => {
      if (event.target.closest("a")) this.close();
    });
    matchMedia(NARROW).addEventListener("change", () => this.close()); // beside the rest it is no drawer
  }

  get isOpen() {
    return document.body.classList.contains("side-open");
  }

  open() {
    document.body.classList.add("side-open");
    byId("veil").hidden = false;
    byId("stage").inert = true;
    byId("open-side").setAttribute("aria-expanded", "true");
    byId("close-side").focus();
  }

  close() {
    if (!this.isOpen) return;
    document.body.classList.remove("side-open");
    byId("veil").hidden = true;
    byId("stage").inert = false;
    byId("open-side").setAttribute("aria-expanded", "false");
    if (matchMedia(NARROW).matches) byId("open-side").focus();
    else if (!document.activeElement.checkVisibility() || document.activeElement === document.body)
      byId("main").focus();
  }

  // Read the list anew, as far as it was read before.
  async refresh() {
    const number = (this.#reads += 1);
    let found = { data: [], hasMore: true };
    try {
      do {
        const next = await this.app.store.list(found.data.at(-1)?.id);
        found = { data: [...found.data, ...next.data], hasMore: next.hasMore };
      } while (found.hasMore && found.data.length < this.#wanted);
    } catch (error) {
      if (error.status !== 401) {
        tell(`The conversations could not be read: ${error.message}`);
        return;
      }
      found = { data: [], hasMore: false }; // those that are shown were another key's
    }
    if (number !== this.#reads) return; // a later one knows more
    this.#shown = found.data;
    this.more.hidden = !found.hasMore;
    this.draw();
  }

  draw() {
    const here = this.app.isChatShown() ? this.app.conversation().id : null;
    const known = new Set(this.#shown.map((one) => one.id));
    const begun = this.app.written().filter((one) => !known.has(one.id)); // the store knows them when they end
    const all = [...begun, ...this.#shown];
    const before = this.#items;
    this.#items = new Map(all.map((one) => [one.id, before.get(one.id) ?? this.#item(one.id)]));
    for (const one of all) this.#items.get(one.id).show(one, one.id === here, known.has(one.id));
    const nodes = [...this.#items.values()].map((item) => item.node);
    reconcile(this.list, nodes.length ? nodes : [this.#none]);
  }

  #item(id) {
    let title = "";
    const link = el("a", { href: `#/chat/${id}` });
    const rename = iconButton("edit", "", () => this.#rename(id, title));
    const remove = iconButton("bin", "", () => this.#remove(id, title));
    const show = (conversation, isHere, isKept) => {
      title = conversation.title || "Without a title";
      link.textContent = link.title = title;
      if (isHere) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
      for (const [button, words] of [
        [rename, `Rename ${title}`],
        [remove, `Delete ${title}`],
      ]) {
        button.hidden = !isKept;
        button.title = words;
        button.setAttribute("aria-label", words);
      }
    };
    return { node: el("li", {}, link, rename, remove), link, show };
  }

  async #rename(id, before) {
    const title = await asked("Rename the conversation", "Title", before);
    if (!title) return;
    await this.#attempt(async () => {
      await this.app.store.change(id, { title });
      this.app.renamed(id, title);
    });
  }

  async #remove(id, title) {
    if (isWriting(id)) {
      tell("An answer is being written in it: stop it first."); // it would be kept after all
      return;
    }
    const text = `\u201c${title}\u201d, its answers and what you said about them are deleted for good.`;
    if (!(await confirmed("Delete the conversation?", text, "Delete"))) return;
    const place = [...this.#items.keys()].indexOf(id);
    await this.#attempt(async () => {
      await this.app.store.remove(id);
      this.app.removed(id);
      tell("Deleted.");
    });
    if (document.activeElement !== document.body) return;
    const left = [...this.#items.values()];
    (left[Math.min(place, left.length - 1)]?.link ?? byId("new-chat")).focus();
  }

  async #attempt(act) {
    try {
      await act();
    } catch (error) {
      tell(error.message);
    }
    await this.refresh();
  }
}
