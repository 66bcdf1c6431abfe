/** What a failure means to the person in front of the page, and what to do about it. */

/** @import { GatewayError } from "./gateway.js" */

/**
 * @param {GatewayError} error
 * @returns {{title: string, text: string, remedy: "key" | "again"}}
 */
export function explain(error) {
  const { status, message, requestId } = error;
  const text = sentence(message);
  switch (status) {
    case 0:
      return { title: "No connection", text: `${text} Nothing is charged for it.`, remedy: "again" };
    case 401:
      return {
        title: "The gateway does not know this key",
        text: "It may have been revoked or mistyped.",
        remedy: "key",
      };
    case 406:
      return {
        title: "Not enough credits",
        text: `${text} Fewer steps, fewer or smaller pictures cost less; the operator adds credits with “tiny-sd-gateway keys credit”.`,
        remedy: "again",
      };
    case 429:
      return { title: "Come back in a moment", text, remedy: "again" };
    case 503:
      return { title: "Not ready", text, remedy: "again" };
    case 504:
      return { title: "It took too long", text: `${text} Nothing was charged.`, remedy: "again" };
    default: {
      const name = requestId ? ` The operator finds it in the log as ${requestId}.` : "";
      return {
        title: status >= 500 ? "The server failed" : "The gateway refused this",
        text: text + name,
        remedy: "again",
      };
    }
  }
}

/**
 * What stands beside a field: the gateway's message without the parameter's name, as a sentence.
 *
 * @param {string} message for example `samples: got 9; allowed: an integer from 1 to 4`
 * @param {string} parameter
 */
export function besideField(message, parameter) {
  return sentence(message.startsWith(`${parameter}: `) ? message.slice(parameter.length + 2) : message);
}

/**
 * Keeps a button from being pressed for some time, and counts down on it.
 *
 * @param {HTMLButtonElement} button
 * @param {number} seconds
 */
export function holdBack(button, seconds) {
  const label = button.textContent;
  const until = Date.now() + seconds * 1000;
  const tick = () => {
    const left = (until - Date.now()) / 1000;
    button.disabled = left > 0;
    button.textContent = left > 0 ? `${label} in ${Math.ceil(left)} s` : label;
    if (left > 0 && button.isConnected) setTimeout(tick, 250);
  };
  tick();
}

/** @param {string} message */
function sentence(message) {
  const text = message.trim();
  if (!text) return "";
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}
