/**
 * The form: a field for each parameter that the gateway has. Parameters that this file has never heard of get one too,
 * under "Advanced".
 */

import { makeControl } from "./controls.js";
import { make } from "./elements.js";

/** @import { Control, Definition } from "./controls.js" */

/**
 * How the documented parameters look, in the order in which they stand. Where the label says it all, the description is
 * for screen readers and those who hover.
 *
 * @typedef {{label: string, rows?: number, half?: boolean, advanced?: boolean, described?: boolean, empty?: string}} Look
 * @type {Record<string, Look>}
 */
const LOOKS = {
  prompt: { label: "Prompt", rows: 3, described: true, empty: "Say what the picture should show." },
  negative_prompt: { label: "Negative prompt" },
  img_width: { label: "Width", half: true },
  img_height: { label: "Height", half: true },
  samples: { label: "Pictures", described: true },
  num_inference_steps: { label: "Steps" },
  seed: { label: "Seed" },
  scheduler: { label: "Scheduler", advanced: true },
  guidance_scale: { label: "Guidance", advanced: true, described: true },
  image_format: { label: "File format", advanced: true },
  preview_every: { label: "Steps between previews", advanced: true, described: true },
};
const ORDER = Object.keys(LOOKS);

export class Form {
  /** @type {Map<string, Field>} */
  #fields = new Map();
  /** @type {HTMLDetailsElement} */
  #advanced;

  /**
   * @param {Definition[]} definitions
   * @param {Element} main where the fields go
   * @param {HTMLDetailsElement} advanced where the others go: into its last child
   */
  constructor(definitions, main, advanced) {
    this.#advanced = advanced;
    const place = (/** @type {Definition} */ { name }) => (name in LOOKS ? ORDER.indexOf(name) : ORDER.length);
    for (const definition of definitions.toSorted((a, b) => place(a) - place(b))) {
      const look = LOOKS[definition.name] ?? { label: inWords(definition.name), advanced: true, described: true };
      const field = new Field(definition, look);
      this.#fields.set(definition.name, field);
      (look.advanced ? /** @type {Element} */ (advanced.lastElementChild) : main).append(field.element);
    }
    advanced.hidden = false;
    this.#summarize();
    advanced.addEventListener("input", () => this.#summarize());
  }

  /** What the fields say, as JSON values by parameter. */
  values() {
    return Object.fromEntries(Array.from(this.#fields, ([name, field]) => [name, field.control.read()]));
  }

  /**
   * Those of `parameters` that are not at their defaults, as far as there are fields for them.
   *
   * @param {Record<string, any>} parameters
   */
  differing(parameters) {
    const differs = (/** @type {string} */ name) =>
      this.#fields.has(name) && parameters[name] !== this.#fields.get(name)?.definition.default;
    return Object.fromEntries(Object.entries(parameters).filter(([name]) => differs(name)));
  }

  /**
   * Sets the fields that `parameters` name and leaves the others alone. A value that a field cannot hold becomes a problem
   * beside it.
   *
   * @param {Record<string, any>} parameters
   * @returns {boolean} whether every value fitted
   */
  fill(parameters) {
    let fitted = true;
    for (const [name, field] of this.#fields) {
      if (!(name in parameters)) continue;
      const wanted = parameters[name];
      field.control.write(wanted);
      const fits = String(field.control.read()) === String(wanted);
      field.problem = fits ? "" : `${wanted} is not to be had here.`;
      fitted &&= fits;
    }
    this.#summarize();
    return fitted;
  }

  /** Shows every problem beside its field and goes to the first; returns whether there was none. */
  check() {
    const fields = Array.from(this.#fields.values());
    for (const field of fields) field.problem = field.control.problem();
    const first = fields.find((field) => field.problem);
    if (first) this.#goTo(first);
    return !first;
  }

  /**
   * Shows what the gateway has against one parameter; returns false where there is no field for it.
   *
   * @param {string} name
   * @param {string} problem
   */
  refuse(name, problem) {
    const field = this.#fields.get(name);
    if (!field) return false;
    field.problem = problem;
    this.#goTo(field);
    return true;
  }

  /** @param {Field} field */
  #goTo(field) {
    if (this.#advanced.contains(field.element)) this.#advanced.open = true;
    field.focus();
  }

  /** Tells, on the line of the folded section, what is in it. */
  #summarize() {
    const { scheduler, guidance_scale: guidance, image_format: format } = this.values();
    const parts = [scheduler, guidance && `guidance ${guidance}`, format?.toUpperCase()];
    const summary = /** @type {HTMLElement} */ (this.#advanced.querySelector("summary .aside"));
    summary.textContent = parts.filter(Boolean).join(" · ");
  }
}

/** One parameter: its label, control and description, and what is wrong with its value. */
class Field {
  #problem;
  #described;

  /**
   * @param {Definition} definition
   * @param {Look} look
   */
  constructor(definition, look) {
    const { name, description = "" } = definition;
    this.definition = definition;
    /** @type {Control} */
    this.control = makeControl(definition, look);
    const { elements, inputs, group } = this.control;
    this.#problem = make("p", { className: "problem", id: `${name}-problem`, hidden: true });
    const hint = make("p", {
      className: look.described ? "hint" : "hidden",
      id: `${name}-hint`,
      textContent: description,
    });

    let described;
    let labelled;
    if (group) {
      const legend = make("legend", { textContent: look.label });
      described = make("fieldset", { role: "radiogroup" }, [legend, make("div", { className: "choices" }, elements)]);
      labelled = [described];
    } else {
      described = inputs[0];
      described.id = name;
      labelled = [
        make("label", { htmlFor: name, textContent: look.label }),
        make("div", { className: "control" }, elements),
      ];
    }
    described.setAttribute("aria-describedby", `${name}-problem ${name}-hint`);
    this.#described = described;
    this.element = make("div", { className: look.half ? "field half" : "field" }, [...labelled, this.#problem, hint]);
    this.element.dataset.parameter = name;
    if (!look.described) this.element.title = description;
    this.element.addEventListener("input", () => (this.problem = ""));
    this.element.addEventListener("change", () => (this.problem = this.control.problem()));
    if (definition.default !== undefined) this.control.write(definition.default);
  }

  get problem() {
    return this.#problem.textContent ?? "";
  }

  set problem(text) {
    this.#problem.textContent = text;
    this.#problem.hidden = !text;
    if (text) this.#described.setAttribute("aria-invalid", "true");
    else this.#described.removeAttribute("aria-invalid");
  }

  focus() {
    const { inputs } = this.control;
    (inputs.find((input) => /** @type {HTMLInputElement} */ (input).checked) ?? inputs[0]).focus();
  }
}

/** @param {string} name */
function inWords(name) {
  const words = name.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}
