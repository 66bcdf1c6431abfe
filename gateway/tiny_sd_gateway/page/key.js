/** The API key: asked for once, kept in this browser, shown nowhere. */

import { byId } from "./elements.js";
import { GatewayError, credits } from "./gateway.js";

const STORED = "tiny-sd-key";

export class Key {
  #dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  #input = /** @type {HTMLInputElement} */ (byId("key"));
  #problem = byId("key-problem");
  #button = byId("key-button");
  #onCredits;
  #news = 0; // counts what was heard of key and credits: an answer to an earlier question is old

  /** @param {(remaining: number | null) => void} onCredits is told what the key has left; null: there is no key */
  constructor(onCredits) {
    this.#onCredits = onCredits;
    this.#button.addEventListener("click", () => this.ask());
    byId("key-later").addEventListener("click", () => this.#dialog.close());
    byId("key-forget").addEventListener("click", () => {
      this.#keep("");
      this.#dialog.close();
    });
    this.#dialog.querySelector("form")?.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#tryIt(this.#input.value.trim());
    });
    addEventListener("hashchange", () => {
      if (this.#takeFromAddress()) this.refresh();
    });
    this.#takeFromAddress();
    this.#show();
  }

  /** Empty where there is none. */
  get value() {
    return localStorage.getItem(STORED) ?? "";
  }

  /** Takes the key of `#key=…` and removes it from the address, so that it gets into no bookmark and no screenshot. */
  #takeFromAddress() {
    const given = new URLSearchParams(location.hash.slice(1)).get("key");
    if (given === null) return false;
    history.replaceState(null, "", location.pathname + location.search);
    this.#keep(given.trim());
    return true;
  }

  /**
   * Asks for a key.
   *
   * @param {string} [problem] what is wrong with the one that there is
   * @returns {Promise<boolean>} whether there is one now that the gateway knows
   */
  ask(problem = "") {
    this.#input.value = "";
    this.#tell(problem);
    byId("key-forget").hidden = !this.value;
    this.#dialog.returnValue = "";
    this.#dialog.showModal();
    return new Promise((resolve) => {
      this.#dialog.addEventListener("close", () => resolve(this.#dialog.returnValue === "taken"), { once: true });
    });
  }

  /** Looks up what the key has left, and forgets nothing if that fails. */
  async refresh() {
    if (!this.value) return;
    const news = ++this.#news;
    try {
      const remaining = await credits(this.value);
      if (news === this.#news) this.#onCredits(remaining);
    } catch (error) {
      if (!(error instanceof GatewayError)) throw error; // whoever draws will see what is wrong
    }
  }

  /** Somebody else has heard what the key has left. */
  hasLeft(/** @type {number} */ remaining) {
    this.#news++;
    this.#onCredits(remaining);
  }

  async #tryIt(/** @type {string} */ key) {
    if (!key) return this.#tell("Paste the key here.");
    try {
      const remaining = await credits(key);
      this.#keep(key);
      this.hasLeft(remaining);
      this.#dialog.close("taken");
    } catch (error) {
      if (!(error instanceof GatewayError)) throw error;
      this.#tell(error.status === 401 ? "The gateway does not know this key." : error.message);
    }
  }

  #keep(/** @type {string} */ key) {
    if (key) localStorage.setItem(STORED, key);
    else localStorage.removeItem(STORED);
    this.#news++;
    if (!key) this.#onCredits(null);
    this.#show();
  }

  #tell(/** @type {string} */ problem) {
    this.#problem.textContent = problem;
    this.#problem.hidden = !problem;
    this.#input.setAttribute("aria-invalid", String(Boolean(problem)));
    this.#input.focus();
  }

  #show() {
    this.#button.querySelector("span").textContent = this.value ? "Key" : "Add key";
  }
}
