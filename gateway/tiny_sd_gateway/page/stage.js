/** Where the pictures are: noise at first, then previews coming out of it, then the pictures. */

import { byId, iconOf, make } from "./elements.js";
import { creditsInWords, duration, fileName } from "./words.js";

/** Pixels for each latent: the noise shown is as fine as the one that pictures are made from. */
const PIXELS_PER_LATENT = 8;
/** How much larger than its pixels a picture is shown at most; more looks soft. */
const LARGEST_SCALE = 1.5;

/**
 * @typedef {{blob: Blob, seed: number | bigint}} Picture
 * @typedef {{pictures: Picture[], parameters: Record<string, any>, cost?: number, seconds?: number, origin?: string}} Result
 *   seconds: that the server drew; origin: where it comes from if it has not just been drawn
 */

export class Stage {
  #element = byId("stage");
  #status = byId("status");
  #progress = /** @type {HTMLProgressElement} */ (byId("progress"));
  #failure = byId("failure");
  #frames = byId("frames");
  #viewer = /** @type {HTMLDialogElement} */ (byId("viewer"));
  /** @type {string[]} */
  #urls = [];
  #reuseSeed;

  /** @param {(seed: number | bigint) => void} reuseSeed what to do when somebody wants the seed of a picture */
  constructor(reuseSeed) {
    this.#reuseSeed = reuseSeed;
    this.#viewer.addEventListener("click", (event) => {
      if (event.target === this.#viewer) this.#viewer.close(); // beside the picture
    });
  }

  /** @param {Record<string, any>} parameters */
  showNoise(parameters) {
    this.#enter("idle");
    this.#status.textContent = this.#layOut(parameters);
  }

  /** @param {Record<string, any>} parameters */
  begin(parameters) {
    this.#enter("drawing");
    this.#layOut(parameters);
    this.#status.textContent = "Sent";
    this.#progress.hidden = false;
    this.#progress.removeAttribute("value");
  }

  /**
   * @param {{stage: string, step: number, steps: number, seconds_left: number | null}} progress
   * @returns {string} the same in words
   */
  showProgress({ stage, step, steps, seconds_left: left }) {
    const known = stage !== "queued" || step > 0;
    if (known) this.#progress.value = step / steps;
    else this.#progress.removeAttribute("value");
    const rest =
      left !== null && left >= 0 && stage === "denoising" ? `, about ${duration(Math.ceil(left), 0)} left` : "";
    const words = { queued: "Waiting for the server", decoding: "Finishing", done: "Finishing" }[stage];
    return (this.#status.textContent = words ?? `Step ${step} of ${steps}${rest}`);
  }

  /** @param {string[]} previews small JPEG files in base64, one for each picture */
  showPreviews(previews) {
    previews.forEach((preview, index) => {
      const frame = this.#frames.children[index]?.firstElementChild;
      if (!frame) return;
      const image = frame.querySelector("img") ?? frame.appendChild(make("img", { className: "preview", alt: "" }));
      image.src = `data:image/jpeg;base64,${preview}`;
    });
  }

  /** @param {Result} result */
  showPictures({ pictures, parameters, cost, seconds, origin }) {
    this.#enter("done");
    this.#layOut({ ...parameters, samples: pictures.length });
    pictures.forEach(({ blob, seed }, index) => {
      const url = URL.createObjectURL(blob);
      this.#urls.push(url);
      this.#frames.children[index].replaceChildren(...this.#picture(url, seed, blob.type, parameters.prompt));
    });
    const parts = [
      origin,
      seconds === undefined ? "" : duration(seconds),
      cost === undefined ? "" : creditsInWords(cost),
    ];
    this.#status.textContent = parts.filter(Boolean).join(" · ");
  }

  /**
   * Says above the frames what went wrong and what to do about it.
   *
   * @param {string} title
   * @param {string} text
   * @param {{label: string, act: () => void}} remedy
   * @returns {HTMLButtonElement} the remedy's button
   */
  showFailure(title, text, remedy) {
    const [heading, paragraph, tools] = this.#failure.children;
    heading.textContent = title;
    paragraph.textContent = text;
    const button = make("button", { type: "button", textContent: remedy.label, onclick: remedy.act });
    tools.replaceChildren(button);
    this.#failure.hidden = false;
    return button;
  }

  hideFailure() {
    this.#failure.hidden = true;
  }

  /** Scrolls to the stage where it stands below the form, as on phones. */
  reveal() {
    if (this.#element.getBoundingClientRect().top > innerHeight / 2) this.#element.scrollIntoView();
  }

  /** @param {string} state */
  #enter(state) {
    this.#element.dataset.state = state;
    this.#progress.hidden = true;
    this.hideFailure();
    this.#urls.splice(0).forEach(URL.revokeObjectURL);
  }

  /** Makes a frame of noise for each picture to come; returns their size in words. */
  #layOut(/** @type {Record<string, any>} */ { img_width: width, img_height: height, samples }) {
    const columns = samples > 1 ? 2 : 1;
    const rows = Math.ceil(samples / columns);
    const set = (/** @type {string} */ name, /** @type {number} */ value) =>
      this.#frames.style.setProperty(name, String(value));
    set("--columns", columns);
    set("--rows", rows);
    set("--ratio", width / height);
    set("--whole-ratio", (columns * width) / (rows * height));
    set("--largest", columns * width * LARGEST_SCALE);
    const frames = Array.from({ length: samples }, (_, index) =>
      make("li", {}, [make("div", { className: "picture" }, [noise(width, height, index)])]),
    );
    this.#frames.replaceChildren(...frames);
    return `${width} × ${height}`;
  }

  /** @returns {HTMLElement[]} a picture that opens in full, and a line about it */
  #picture(/** @type {string} */ url, /** @type {number | bigint} */ seed, /** @type {string} */ type, prompt = "") {
    const image = make("img", { src: url, alt: prompt });
    const open = make("button", { type: "button", className: "picture", title: "Show in full" }, [image]);
    open.addEventListener("click", () => this.#showInFull(url, prompt));
    const reuse = make("button", { type: "button", className: "quiet", title: `Use seed ${seed}` }, [
      iconOf("again"),
      make("span", { className: "spare", textContent: "seed" }),
      make("span", { textContent: String(seed) }),
    ]);
    reuse.addEventListener("click", () => this.#reuseSeed(seed));
    const name = fileName(prompt, seed, type);
    const save = make("a", { className: "button quiet", href: url, download: name, ariaLabel: `Download ${name}` }, [
      iconOf("save"),
      make("span", { className: "spare", textContent: "Download" }),
    ]);
    return [open, make("div", { className: "caption" }, [reuse, save])];
  }

  #showInFull(/** @type {string} */ url, /** @type {string} */ prompt) {
    const image = /** @type {HTMLImageElement} */ (this.#viewer.querySelector("img"));
    image.src = url;
    image.alt = prompt;
    this.#viewer.showModal();
  }
}

/** Noise as a generation of this size begins with, a pixel for each latent; the same at every call. */
function noise(/** @type {number} */ width, /** @type {number} */ height, /** @type {number} */ seed) {
  const canvas = make("canvas", {
    width: Math.round(width / PIXELS_PER_LATENT),
    height: Math.round(height / PIXELS_PER_LATENT),
  });
  canvas.setAttribute("aria-hidden", "true");
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const pixels = context.createImageData(canvas.width, canvas.height);
  const random = uniform(seed + 1);
  const normal = () => random() + random() + random() + random() - 2; // of deviation 0.58: near enough
  for (let at = 0; at < pixels.data.length; at += 4) {
    const light = 128 + 60 * normal();
    for (let channel = 0; channel < 3; channel++) pixels.data[at + channel] = light + 45 * normal();
    pixels.data[at + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Pseudo-random numbers from 0 to 1 (mulberry32). */
function uniform(/** @type {number} */ state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
