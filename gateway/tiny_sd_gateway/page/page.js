/** The playground: what the person does, what the gateway answers, and where each of the two shows. */

import { byId } from "./elements.js";
import { besideField, explain, holdBack } from "./failures.js";
import { chooseFile, listenForFiles } from "./files.js";
import { Form } from "./form.js";
import { GatewayError, draw, parameters, parametersInside, parseJson, writeJson } from "./gateway.js";
import { History } from "./history.js";
import { Key } from "./key.js";
import { asCurl, asPython, copy } from "./snippets.js";
import { Stage } from "./stage.js";
import { Thumbnails } from "./thumbnails.js";
import { amountInWords, creditsInWords, duration, picturesInWords } from "./words.js";

/** @import { Result } from "./stage.js" */

const DRAFT = "tiny-sd-draft";
/** Milliseconds for which a screen reader is left in peace between two tellings of the progress. */
const BETWEEN_ANNOUNCEMENTS = 8000;

const formElement = /** @type {HTMLFormElement} */ (byId("form"));
const generateButton = byId("generate");
const cancelButton = byId("cancel");

const key = new Key(showCredits); // first of all: it takes the key out of the address
const stage = new Stage(reuseSeed);
const history = await History.open();
const thumbnails = new Thumbnails(history, restore);
/** @type {Form | null} none until the gateway has told its parameters */
let form = null;
/** The name of the model in URLs, and what a picture costs: as the gateway has told them, too. */
let model = { slug: "", creditsPerPicture: 0 };
/** @type {Result | null} what the stage shows */
let shown = null;
/** @type {AbortController | null} of the generation under way */
let drawing = null;
/** When the progress was last told to screen readers. */
let announced = 0;

listen();
key.refresh();
load();

/** Builds the form from what the gateway has. */
async function load() {
  let described;
  try {
    described = await parameters(key.value);
  } catch (error) {
    return fail(error, load);
  }
  model = { slug: described.slugs[0], creditsPerPicture: Number(described.credits_per_picture) };
  form = new Form(described.parameters, byId("fields"), byId("advanced"));
  form.fill(parseJson(localStorage.getItem(DRAFT) ?? "{}"));
  byId("seed-reuse").addEventListener("click", () => shown && reuseSeed(shown.pictures[0].seed));
  stage.showNoise(form.values());
  showPrice();
  formElement.classList.add("ready");
  if (matchMedia("(hover: hover)").matches) byId("prompt").focus({ preventScroll: true });
}

async function generate() {
  if (!form || drawing || !form.check()) return;
  if (!key.value && !(await key.ask())) return;
  const wanted = form.values();
  drawing = new AbortController();
  showDrawing(true);
  stage.begin(wanted);
  let done;
  try {
    for await (const { event, data } of draw(wanted, key.value, drawing.signal)) {
      if (event === "progress") showProgress(data);
      if (event === "preview") stage.showPreviews(data.images);
      if (event === "done") done = data;
    }
  } catch (error) {
    const cancelled = drawing.signal.aborted;
    showAgain();
    if (cancelled) return tell("Cancelled. Nothing was charged.");
    key.refresh();
    fail(error, generate);
  } finally {
    drawing = null;
    showDrawing(false);
  }
  // Only now: whoever sees the picture may ask for the next one at once.
  if (done) await finish(done);
}

/** Closes the connection, which is how the gateway learns of it. */
function cancel() {
  if (!drawing) return;
  drawing.abort();
  generateButton.focus();
}

/** @param {any} done the stream's last event */
async function finish(done) {
  const pictures = done.images.map((/** @type {any} */ { b64, seed, media_type: type }) => ({
    blob: decode(b64, type),
    seed,
  }));
  const result = { pictures, parameters: done.parameters, cost: done.cost, seconds: done.infer_time };
  show(result);
  key.hasLeft(done.remaining_credits);
  announce(`${picturesInWords(pictures.length)} in ${duration(result.seconds)} for ${creditsInWords(result.cost)}`);
  await history.add(result);
  thumbnails.update();
}

/**
 * Shows what went wrong: beside the field that it names, else above the pictures, with a way to go on.
 *
 * @param {unknown} error
 * @param {() => void} retry
 */
async function fail(error, retry) {
  if (!(error instanceof GatewayError)) throw error;
  announce(""); // what follows speaks for itself
  const parameter = error.parameter ?? error.message.split(":")[0];
  if (form?.refuse(parameter, besideField(error.message, parameter))) return;
  const { title, text, remedy } = explain(error);
  if (remedy === "key") {
    const ask = async () => (await key.ask()) && retry();
    stage.showFailure(title, text, { label: "Enter another key", act: ask });
    if (!key.value) ask();
  } else {
    const button = stage.showFailure(title, text, { label: "Try again", act: retry });
    if (error.retryAfter) holdBack(button, error.retryAfter);
  }
  stage.reveal();
}

/** @param {File} file */
async function restoreFrom(file) {
  if (!form) return;
  try {
    const { parameters } = await parametersInside(file, key.value);
    const seed = parameters.seed ?? -1;
    restore({ pictures: [{ blob: file, seed }], parameters, origin: file.name });
  } catch (error) {
    if (error instanceof GatewayError && error.status === 401) return fail(error, () => restoreFrom(file));
    if (!(error instanceof GatewayError)) throw error;
    const text = besideField(error.message, "file");
    stage.showFailure(`Nothing to restore from ${file.name}`, text, {
      label: "Choose another",
      act: chooseFile,
    });
    stage.reveal();
  }
}

/**
 * Puts the parameters of a result into the form, and its pictures on the stage unless something is being drawn there.
 *
 * @param {Result} result
 */
function restore(result) {
  const fitted = form?.fill(result.parameters);
  changed();
  if (!drawing) show(result);
  announce(fitted ? "Parameters restored" : "Parameters restored, but for those that are not to be had here");
}

/** @param {number | bigint} seed */
function reuseSeed(seed) {
  form?.fill({ seed });
  changed();
  announce(`Seed ${seed}`);
}

/** @param {Result} result */
function show(result) {
  shown = result;
  stage.showPictures(result);
  byId("seed-reuse").disabled = false;
}

/** Shows what was there before the generation that came to nothing. */
function showAgain() {
  if (shown) stage.showPictures(shown);
  else if (form) stage.showNoise(form.values());
}

/** @param {boolean} under a generation is under way */
function showDrawing(under) {
  generateButton.setAttribute("aria-disabled", String(under));
  generateButton.firstElementChild.textContent = under ? "Drawing…" : "Generate";
  cancelButton.hidden = !under;
  if (under) {
    announced = Date.now();
    announce("Drawing. Escape cancels.");
    stage.reveal();
  } else {
    document.title = "Tiny-SD";
  }
}

/** @param {any} progress the stream's event */
function showProgress(progress) {
  const words = stage.showProgress(progress);
  document.title = `${Math.floor((100 * progress.step) / progress.steps)} % · Tiny-SD`;
  if (Date.now() - announced < BETWEEN_ANNOUNCEMENTS) return;
  announced = Date.now();
  announce(words);
}

/** @param {number | null} remaining */
function showCredits(remaining) {
  const element = byId("credits");
  element.hidden = remaining === null;
  if (remaining !== null) element.firstElementChild.textContent = amountInWords(remaining);
}

/**
 * What the stage shows as code, or what the form says if it shows nothing.
 *
 * @param {string} language
 * @param {typeof asCurl} write
 * @param {HTMLButtonElement} button
 */
async function copyAs(language, write, button) {
  if (!form) return;
  const url = new URL(`v1/${model.slug}`, document.baseURI).href;
  const parameters = form.differing(shown ? shown.parameters : form.values());
  if (!(await copy(language, write({ url, parameters })))) return;
  announce(`Copied as ${language}`);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = language), 1500);
}

/** Says something on the page and to screen readers. @param {string} text */
function tell(text) {
  byId("status").textContent = text;
  announce(text);
}

/** @param {string} text for screen readers alone */
function announce(text) {
  byId("announcer").textContent = text;
}

/** Keeps up with the form. */
function changed() {
  if (!form) return;
  localStorage.setItem(DRAFT, writeJson(form.values()));
  showPrice();
  if (!shown && !drawing) stage.showNoise(form.values());
}

/** Shows what the generation would cost, by the gateway's formula. */
function showPrice() {
  const { num_inference_steps: steps, img_width: width, img_height: height, samples } = form?.values() ?? {};
  const price = model.creditsPerPicture * (steps / 20) * ((width * height) / 512 ** 2) * samples;
  byId("price").textContent = steps ? `· ${creditsInWords(price)}` : "";
}

/** @param {string} base64 @param {string} type */
function decode(base64, type) {
  const characters = atob(base64);
  const bytes = new Uint8Array(characters.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = characters.charCodeAt(at);
  return new Blob([bytes], { type });
}

function listen() {
  if (/Mac|iPhone|iPad/.test(navigator.platform)) byId("modifier").textContent = "⌘";
  formElement.addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  formElement.addEventListener("input", changed);
  cancelButton.addEventListener("click", cancel);
  byId("copy-curl").addEventListener("click", () => copyAs("curl", asCurl, byId("copy-curl")));
  byId("copy-python").addEventListener("click", () => copyAs("Python", asPython, byId("copy-python")));
  listenForFiles(restoreFrom);
  addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      formElement.requestSubmit();
    }
    if (event.key === "Escape") cancel();
  });
}
