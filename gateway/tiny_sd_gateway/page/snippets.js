/** A generation as code to run elsewhere. The key is never in it: it comes from the environment variable TINY_SD_KEY. */

import { byId } from "./elements.js";
import { writeJson } from "./gateway.js";
import { suffix } from "./words.js";

/**
 * @typedef {{url: string, parameters: Record<string, any>}} Call
 *   url: of v1; parameters: those that are not at their defaults
 */

/** @param {Call} call */
export function asCurl({ url, parameters }) {
  const { one, body, ending } = shape(parameters);
  const lines = [
    `curl --fail --silent --show-error ${shellQuoted(url)}`,
    `--header "x-api-key: $TINY_SD_KEY"`,
    `--header "content-type: application/json"`,
    `--data ${shellQuoted(writeJson(body, 2))}`,
  ];
  if (one) return [...lines, `--output ${shellQuoted(`picture.${ending}`)}`].join(" \\\n  ") + "\n";
  const unpack = [
    "import base64, json, sys",
    'for number, picture in enumerate(json.load(sys.stdin)["image"]):',
    `    open(f"picture-{number}.${ending}", "wb").write(base64.b64decode(picture))`,
  ];
  return `${lines.join(" \\\n  ")} \\\n  | python3 -c '\n${unpack.join("\n")}'\n`;
}

/** @param {Call} call */
export function asPython({ url, parameters }) {
  const { one, body, ending } = shape(parameters);
  const lines = [
    ...(one ? [] : ["import base64"]),
    "import os",
    "",
    "import requests",
    "",
    "answer = requests.post(",
    `    ${writeJson(url)},`,
    '    headers={"x-api-key": os.environ["TINY_SD_KEY"]},',
    "    json={",
    ...Object.entries(body).map(([name, value]) => `        "${name}": ${pythonLiteral(value)},`),
    "    },",
    "    timeout=600,",
    ")",
    "answer.raise_for_status()",
  ];
  const save = one
    ? [`with open("picture.${ending}", "wb") as file:`, "    file.write(answer.content)"]
    : [
        'for number, picture in enumerate(answer.json()["image"]):',
        `    with open(f"picture-{number}.${ending}", "wb") as file:`,
        "        file.write(base64.b64decode(picture))",
      ];
  return [...lines, ...save, ""].join("\n");
}

/**
 * Copies code, or shows it to be copied by hand where browsers forbid that: on pages that come by plain HTTP from another
 * machine.
 *
 * @param {string} language
 * @param {string} code
 * @returns {Promise<boolean>} whether it has been copied
 */
export async function copy(language, code) {
  try {
    await navigator.clipboard.writeText(code);
    return true;
  } catch {
    byId("code-title").textContent = `As ${language}`;
    byId("code").value = code;
    byId("code-dialog").showModal();
    byId("code").select();
    return false;
  }
}

/** One picture comes as a file, several come as a list of base64 texts. */
function shape(/** @type {Record<string, any>} */ { preview_every: _, ...parameters }) {
  const one = (parameters.samples ?? 1) === 1;
  const body = one ? { ...parameters, base64: false } : parameters;
  return { one, body, ending: suffix(parameters.image_format ?? "jpeg") };
}

/** @param {string} text */
function shellQuoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** @param {any} value */
function pythonLiteral(value) {
  if (typeof value === "boolean") return value ? "True" : "False";
  return writeJson(value);
}
