/**
 * The gateway's HTTP interface as this page uses it.
 *
 * Seeds have up to 63 bits and JavaScript's numbers 53: integers beyond those are BigInt here, and stay exact in JSON
 * wherever the browser lets them.
 */

const INTEGER = /^-?\d+$/;

/** What a refused or broken request says of itself. */
export class GatewayError extends Error {
  /**
   * @param {number} status HTTP status; 0 where no answer, or only a part of it, arrived
   * @param {string} message what the gateway said
   * @param {{parameter?: string, retryAfter?: number, requestId?: string}} [details]
   *   retryAfter: seconds
   */
  constructor(status, message, { parameter, retryAfter, requestId } = {}) {
    super(message);
    this.status = status;
    this.parameter = parameter;
    this.retryAfter = retryAfter;
    this.requestId = requestId;
  }
}

/** @param {string} text */
export function parseJson(text) {
  /** @type {any} the third argument, the value's source, is younger than the types of editors */
  const exact = (/** @type {string} */ _, /** @type {unknown} */ value, /** @type {{source?: string}} */ context) => {
    const inexact = typeof value === "number" && !Number.isSafeInteger(value);
    return inexact && INTEGER.test(context?.source ?? "") ? BigInt(context.source ?? 0) : value;
  };
  return JSON.parse(text, exact);
}

/**
 * @param {unknown} value
 * @param {number} [indent]
 */
export function writeJson(value, indent = 0) {
  const { rawJSON = String } = /** @type {any} */ (JSON); // without it as text, which the gateway reads as well
  const exact = (/** @type {string} */ _, /** @type {unknown} */ value) =>
    typeof value === "bigint" ? rawJSON(String(value)) : value;
  return JSON.stringify(value, exact, indent);
}

/** @returns {Promise<any>} the parameters that may be set: their types, ranges, defaults and descriptions */
export const parameters = (/** @type {string} */ key) => ask("v1/parameters", { key });

/** @returns {Promise<any>} the parameters that stand in a picture file */
export function parametersInside(/** @type {File} */ file, /** @type {string} */ key) {
  const body = new FormData();
  body.append("file", file);
  return ask("v1/parameters", { key, method: "POST", body });
}

/** @returns {Promise<number>} what `key` has left */
export async function credits(/** @type {string} */ key) {
  return (await ask("v1/credits", { key })).remaining_credits;
}

/**
 * Draws. Yields what the gateway tells meanwhile, `done` last; aborting `signal` closes the connection, whereupon the
 * gateway stops the generation and charges nothing.
 *
 * @param {object} wanted parameters
 * @param {string} key
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<{event: string, data: any}>}
 */
export async function* draw(wanted, key, signal) {
  const response = await send("v1/generations/stream", {
    key,
    method: "POST",
    body: writeJson(wanted),
    headers: { "content-type": "application/json", accept: "text/event-stream" },
    signal,
  });
  try {
    for await (const { event, data } of serverSentEvents(response)) {
      if (event === "error") throw new GatewayError(data.status, data.error, { parameter: data.parameter });
      yield { event, data };
      if (event === "done") return;
    }
  } catch (error) {
    if (signal.aborted || !(error instanceof TypeError)) throw error; // a TypeError is how a broken connection shows
  }
  throw new GatewayError(0, "The connection was lost before the pictures were finished.");
}

async function ask(/** @type {string} */ path, /** @type {any} */ options) {
  const response = await send(path, options);
  const text = await response.text().catch(() => {
    throw new GatewayError(0, "The connection was lost before the answer was whole.");
  });
  return parseJson(text);
}

async function send(/** @type {string} */ path, /** @type {any} */ { key, headers = {}, ...options }) {
  let response;
  try {
    // Relative to the page, which may stand below a folder of some proxy.
    response = await fetch(path, { ...options, headers: key ? { ...headers, "x-api-key": key } : headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new GatewayError(0, "The gateway does not answer.");
  }
  if (response.ok) return response;
  throw await refusal(response);
}

async function refusal(/** @type {Response} */ response) {
  const body = await response.json().catch(() => ({}));
  const wait = response.headers.get("retry-after");
  return new GatewayError(response.status, body.error ?? response.statusText, {
    parameter: body.parameter,
    retryAfter: wait === null ? undefined : Number(wait) || Math.max(0, (Date.parse(wait) - Date.now()) / 1000) || 0,
    requestId: body.request_id ?? response.headers.get("x-request-id") ?? undefined,
  });
}

/** Reads a stream of server-sent events whose data are JSON. EventSource would do it, but can only GET. */
async function* serverSentEvents(/** @type {Response} */ response) {
  let event = "message";
  let data = [];
  for await (const line of lines(response)) {
    if (line === "") {
      if (data.length) yield { event, data: parseJson(data.join("\n")) };
      event = "message";
      data = [];
      continue;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") event = value;
    if (field === "data") data.push(value);
  }
}

/** Splits as the bytes come, looking at each once: a line with pictures in it may have megabytes. */
async function* lines(/** @type {Response} */ { body }) {
  /** @type {any} streams of bytes and of buffers, which types tell apart and browsers do not */
  const decoder = new TextDecoderStream();
  const reader = /** @type {ReadableStream<Uint8Array>} */ (body).pipeThrough(decoder).getReader();
  let begun = []; // the pieces of a line whose end has not come yet
  let endsInReturn = false; // then a newline that comes next belongs to it
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const text = endsInReturn && value.startsWith("\n") ? value.slice(1) : value;
      endsInReturn = value.endsWith("\r");
      const pieces = text.split(/\r\n|\n|\r/);
      for (const piece of pieces.slice(0, -1)) {
        yield begun.join("") + piece;
        begun = [];
      }
      begun.push(pieces.at(-1));
    }
  } finally {
    await reader.cancel().catch(() => {}); // after an abort there is nothing left to cancel
  }
}
