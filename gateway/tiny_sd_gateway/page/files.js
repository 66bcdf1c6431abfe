/** Picture files that are chosen, or dropped anywhere on the page. */

import { byId } from "./elements.js";

const input = /** @type {HTMLInputElement} */ (byId("file"));

/** Opens the browser's own dialog. */
export function chooseFile() {
  input.click();
}

/** @param {(file: File) => void} take is called with each file */
export function listenForFiles(take) {
  byId("open").addEventListener("click", chooseFile);
  input.addEventListener("change", () => {
    const file = input.files?.[0];
    input.value = ""; // so that the same file can be chosen again
    if (file) take(file);
  });

  const overlay = byId("drop");
  let depth = 0; // a child is entered before its parent is left
  const enter = (/** @type {number} */ change) => {
    depth += change;
    overlay.classList.toggle("over", depth > 0);
  };
  const on = (
    /** @type {"dragenter" | "dragleave" | "dragover" | "drop"} */ type,
    /** @type {(event: DragEvent) => void} */ act,
  ) =>
    addEventListener(type, (event) => {
      if (event.dataTransfer?.types.includes("Files")) act(event);
    });
  on("dragenter", () => enter(1));
  on("dragleave", () => enter(-1));
  on("dragover", (event) => event.preventDefault());
  on("drop", (event) => {
    event.preventDefault();
    enter(-depth);
    const file = event.dataTransfer?.files[0];
    if (file) take(file);
  });
}
