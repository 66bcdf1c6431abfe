/**
 * What a value is entered with: one kind of control for each kind of parameter, read off its type and range.
 *
 * @typedef {{name: string, type: string, description?: string, default?: any, enum?: any[], minimum?: number | bigint,
 *   maximum?: number | bigint, maxLength?: number, required?: boolean}} Definition
 *   JSON Schema's, with the parameter's name in it
 * @typedef {{elements: HTMLElement[], read: () => any, write: (value: any) => void, problem: () => string,
 *   inputs: HTMLElement[], group?: boolean}} Control
 *   `read` gives a JSON value; `write` leaves the control alone where it cannot hold the value; `problem` tells what is
 *   wrong with the value as it stands, empty for nothing; `inputs` are those of `elements` that can hold the focus; a
 *   `group` is several of equal rank
 */

import { iconButton, make } from "./elements.js";

/** So many values are quicker to choose from side by side than in a list. */
const SIDE_BY_SIDE = 4;

/**
 * The control that suits a definition.
 *
 * @param {Definition} definition
 * @param {{label: string, rows?: number, empty?: string}} look
 * @returns {Control}
 */
export function makeControl(definition, look) {
  const { name, type, minimum, maximum } = definition;
  if (name === "seed") return seed(definition);
  if (definition.enum) return choice(definition, definition.enum);
  if (type === "boolean") return flag();
  if (type === "string") return text(definition, look);
  const count = Number(maximum) - Number(minimum) + 1;
  if (type === "integer" && count <= SIDE_BY_SIDE) {
    return choice(
      definition,
      Array.from({ length: count }, (_, index) => Number(minimum) + index),
    );
  }
  return number(definition, look);
}

/** @type {(definition: Definition, look: {rows?: number, empty?: string}) => Control} */
function text({ required, maxLength = Infinity }, { rows = 2, empty = "Is required." }) {
  const area = make("textarea", { rows, required: Boolean(required) });
  const problem = () => {
    if (required && !area.value.trim()) return empty;
    const count = [...area.value].length; // the gateway counts characters, not UTF-16 units
    return count > maxLength ? `Has ${count} characters. Allowed: at most ${maxLength}.` : "";
  };
  const write = (/** @type {any} */ value) => void (area.value = String(value));
  return { elements: [area], inputs: [area], read: () => area.value, write, problem };
}

/**
 * A number: typed, or set with a slider where it has bounds.
 *
 * @type {(definition: Definition, look: {label: string}) => Control}
 */
function number({ type, minimum = -Infinity, maximum = Infinity }, { label }) {
  const integer = type === "integer";
  const range = { min: String(minimum), max: String(maximum), step: integer ? "1" : "0.1" };
  const typed = make("input", { type: "number", inputMode: integer ? "numeric" : "decimal", ...range });
  // Not in the order of the keyboard, whose arrow keys do the same in the field beside it.
  const slider = make("input", { type: "range", tabIndex: -1, ariaLabel: `${label}, slider`, ...range });
  const follow = () => {
    slider.value = typed.value;
    const part = (Number(slider.value) - Number(minimum)) / (Number(maximum) - Number(minimum));
    slider.style.setProperty("--part", String(part));
  };
  const write = (/** @type {any} */ value) => {
    typed.value = String(value);
    follow();
  };
  typed.addEventListener("input", follow);
  slider.addEventListener("input", () => write(slider.value));
  const read = () => (typed.value === "" ? null : Number(typed.value));
  const problem = () => {
    const value = read();
    const fits = value !== null && (!integer || Number.isInteger(value)) && value >= minimum && value <= maximum;
    return fits ? "" : `Allowed: ${integer ? "an integer" : "a number"} from ${minimum} to ${maximum}.`;
  };
  const bounded = Number.isFinite(Number(maximum) - Number(minimum));
  return { elements: bounded ? [slider, typed] : [typed], inputs: [typed], read, write, problem };
}

/**
 * A seed, of up to 63 bits; empty stands for -1, a random one.
 *
 * @type {(definition: Definition) => Control}
 */
function seed({ minimum = -1, maximum = Infinity }) {
  const typed = make("input", {
    type: "text",
    inputMode: "numeric",
    autocomplete: "off",
    spellcheck: false,
    placeholder: "random",
  });
  const random = iconButton("dice", "Random", { id: "seed-random" });
  const reuse = iconButton("again", "Reuse", { id: "seed-reuse", disabled: true });
  const read = () => {
    const digits = typed.value.trim();
    if (digits === "") return -1;
    if (!/^-?\d+$/.test(digits)) return digits;
    const value = BigInt(digits);
    return Number.isSafeInteger(Number(value)) ? Number(value) : value;
  };
  const write = (/** @type {any} */ value) => void (typed.value = String(value) === "-1" ? "" : String(value));
  const problem = () => {
    const value = read();
    if (typeof value !== "string" && value >= minimum && value <= maximum) return "";
    return `Allowed: an integer from 0 to ${maximum}, or nothing for a random one.`;
  };
  random.addEventListener("click", () => {
    write(-1);
    typed.dispatchEvent(new Event("input", { bubbles: true }));
  });
  return { elements: [typed, random, reuse], inputs: [typed], read, write, problem };
}

/**
 * One of several values: side by side where they are few, else in a list.
 *
 * @type {(definition: Definition, values: any[]) => Control}
 */
function choice({ name }, values) {
  const named = (/** @type {string} */ text) => values.find((value) => String(value) === text);
  const problem = () => "";
  if (values.length > SIDE_BY_SIDE) {
    const options = values.map((value) => make("option", { value: String(value), textContent: String(value) }));
    const list = make("select", {}, options);
    const write = (/** @type {any} */ value) => {
      if (named(String(value)) !== undefined) list.value = String(value);
    };
    return { elements: [list], inputs: [list], read: () => named(list.value), write, problem };
  }
  const radios = values.map((value) => make("input", { type: "radio", name, value: String(value) }));
  const labels = radios.map((radio) => make("label", {}, [radio, make("span", { textContent: radio.value })]));
  const read = () => named(radios.find((radio) => radio.checked)?.value ?? "");
  const write = (/** @type {any} */ value) => {
    const radio = radios.find((radio) => radio.value === String(value));
    if (radio) radio.checked = true;
  };
  return { elements: labels, inputs: radios, group: true, read, write, problem };
}

/** @type {() => Control} */
function flag() {
  const box = make("input", { type: "checkbox" });
  const write = (/** @type {any} */ value) => void (box.checked = String(value) === "true");
  return { elements: [box], inputs: [box], read: () => box.checked, write, problem: () => "" };
}
