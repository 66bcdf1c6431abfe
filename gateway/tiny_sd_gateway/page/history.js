/**
 * What this browser has drawn: kept in IndexedDB, so that it survives a reload, and bounded.
 *
 * Where there is no IndexedDB (some private windows) it is kept until the page is left.
 */

const MOST_GENERATIONS = 120;
const MOST_BYTES = 200 * 2 ** 20;
const THUMBNAIL_PIXELS = 192; // of the longer side

/**
 * @import { Result } from "./stage.js"
 * @typedef {Result & {id: number, at: number, thumbnail: Blob}} Entry at: milliseconds since 1970
 */

export class History {
  /** @type {IDBDatabase | null} */
  #database;
  /** @type {Entry[]} the newest first */
  entries;

  /**
   * @param {IDBDatabase | null} database
   * @param {Entry[]} entries
   */
  constructor(database, entries) {
    this.#database = database;
    this.entries = entries.sort((a, b) => b.id - a.id);
  }

  /** @returns {Promise<History>} */
  static async open() {
    try {
      const opening = indexedDB.open("tiny-sd", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("generations", { keyPath: "id" });
      const database = await answer(opening);
      const entries = await answer(database.transaction("generations").objectStore("generations").getAll());
      return new History(database, entries);
    } catch (error) {
      console.warn("The history is kept only until this page is left:", error);
      return new History(null, []);
    }
  }

  /**
   * Adds a result and lets go of the oldest ones beyond the bounds.
   *
   * @param {Result} result
   */
  async add(result) {
    const small = await thumbnail(result.pictures[0].blob);
    // From here to the put nothing is awaited: other entries may come and go meanwhile.
    const at = Date.now();
    const id = Math.max(at, (this.entries[0]?.id ?? 0) + 1); // in order even if the clock is not
    const entry = { ...result, id, at, thumbnail: small };
    this.entries.unshift(entry);
    await this.#change((store) => store.put(entry));
    let bytes = 0;
    const beyond = this.entries.filter(({ pictures }, index) => {
      bytes += pictures.reduce((sum, { blob }) => sum + blob.size, 0);
      return index > 0 && (index >= MOST_GENERATIONS || bytes > MOST_BYTES);
    });
    for (const { id } of beyond) await this.remove(id);
  }

  /** @param {number} id */
  async remove(id) {
    this.entries = this.entries.filter((entry) => entry.id !== id);
    await this.#change((store) => store.delete(id));
  }

  async clear() {
    this.entries = [];
    await this.#change((store) => store.clear());
  }

  /** @param {(store: IDBObjectStore) => void} change */
  async #change(change) {
    if (!this.#database) return;
    try {
      const transaction = this.#database.transaction("generations", "readwrite");
      change(transaction.objectStore("generations"));
      await committed(transaction);
    } catch (error) {
      console.warn("The history could not be written:", error); // the disk is full: what is on the page stays there
    }
  }
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function answer(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * What is committed survives that the page is left: its requests are answered before.
 *
 * @param {IDBTransaction} transaction
 * @returns {Promise<void>}
 */
function committed(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
}

/** @param {Blob} picture */
async function thumbnail(picture) {
  const bitmap = await createImageBitmap(picture);
  const scale = Math.min(1, THUMBNAIL_PIXELS / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return /** @type {Promise<Blob>} */ (
    new Promise((resolve) => canvas.toBlob((blob) => resolve(blob ?? picture), "image/webp"))
  );
}
