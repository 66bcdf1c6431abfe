/** The history as thumbnails, which restore what they show. */

import { byId, iconOf, make } from "./elements.js";

/** @import { Entry, History } from "./history.js" */
/** @import { Result } from "./stage.js" */

export class Thumbnails {
  #list = byId("thumbnails");
  #clear = byId("clear");
  #history;
  #restore;

  /**
   * @param {History} history
   * @param {(result: Result) => void} restore is called with what somebody chose
   */
  constructor(history, restore) {
    this.#history = history;
    this.#restore = restore;
    this.#clear.addEventListener("click", () => this.#clearAll());
    this.#clear.addEventListener("blur", () => this.#askToClear(false));
    this.update();
  }

  /** Comes into line with the history, and leaves those alone that stay. */
  update() {
    const { entries } = this.#history;
    const ids = new Set(entries.map(({ id }) => String(id)));
    for (const item of Array.from(this.#list.children)) {
      if (ids.has(item.dataset.id)) continue;
      URL.revokeObjectURL(item.querySelector("img").src);
      item.remove();
    }
    entries.forEach((entry, index) => {
      const there = this.#list.children[index];
      if (there?.dataset.id !== String(entry.id)) this.#list.insertBefore(this.#item(entry), there ?? null);
    });
    this.#clear.hidden = entries.length === 0;
    byId("history-empty").hidden = entries.length > 0;
  }

  /** @param {Entry} entry */
  #item(entry) {
    const { id, at, parameters, pictures } = entry;
    const when = new Date(at).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    const image = make("img", { src: URL.createObjectURL(entry.thumbnail), alt: parameters.prompt, loading: "lazy" });
    const open = make("button", { type: "button", className: "open", title: `${parameters.prompt}\n${when}` }, [image]);
    if (pictures.length > 1) open.append(make("span", { className: "count", textContent: String(pictures.length) }));
    open.addEventListener("click", () => this.#restore({ ...entry, origin: when }));

    const label = `Remove: ${parameters.prompt}`;
    const remove = make("button", { type: "button", className: "remove", ariaLabel: label }, [iconOf("close")]);
    const item = make("li", {}, [open, remove]);
    item.dataset.id = String(id);
    remove.addEventListener("click", async () => {
      const next = item.nextElementSibling ?? item.previousElementSibling;
      await this.#history.remove(id);
      this.update();
      (next?.querySelector("button") ?? byId("generate")).focus();
    });
    return item;
  }

  /** The first press asks, the second clears. */
  async #clearAll() {
    if (!this.#clear.classList.contains("asking")) return this.#askToClear(true);
    await this.#history.clear();
    this.update();
    byId("generate").focus();
  }

  /** @param {boolean} asking */
  #askToClear(asking) {
    this.#clear.textContent = asking ? "Really clear all?" : "Clear";
    this.#clear.classList.toggle("asking", asking);
  }
}
