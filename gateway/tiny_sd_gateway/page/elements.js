/** Short forms for making elements. */

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {object} [properties] of the element, not attributes
 * @param {(Node | string)[]} [children]
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, properties = {}, children = []) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/**
 * A quiet button of an icon of index.html and a text.
 *
 * @param {string} icon
 * @param {string} text
 * @param {object} [properties]
 */
export function iconButton(icon, text, properties = {}) {
  return make("button", { type: "button", className: "quiet", ...properties }, [
    iconOf(icon),
    make("span", { textContent: text }),
  ]);
}

/** @param {string} icon */
export function iconOf(icon) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${icon}`);
  svg.append(use);
  return svg;
}

/**
 * The element of index.html with this id.
 *
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  return document.getElementById(id);
}
