/** The playground's form: from its fields to a request, and from an error to the field it names. */

import { byId, setText } from "./element.js";

const NUMBERS = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "max_tokens",
  "seed",
  "frequency_penalty",
  "presence_penalty",
  "repeat_penalty",
  "priority",
];
// Fields of the API that stand under another name here.
const SHOWN_AT = { messages: "prompt", response_format: "schema", stop: "stop_sequences" };
const STORAGE_KEY = "playground";
const SAMPLE = {
  type: "object",
  properties: {
    title: { type: "string", maxLength: 60 },
    year: { type: "integer", minimum: 1900, maximum: 2100 },
    tags: { type: "array", items: { type: "string", maxLength: 20 }, maxItems: 3 },
  },
  required: ["title", "year", "tags"],
  additionalProperties: false,
};

/** @type {HTMLFormElement} */
const form = byId("playground");

/** A value that is no request: the message stands at the field. */
export class FormError extends Error {
  /**
   * @param {string} field
   * @param {string} message
   */
  constructor(field, message) {
    super(message);
    this.details = { [field]: [message] };
  }
}

/** Restores what was typed before a reload, and checks the schema as it is typed. */
export function startForm() {
  restore();
  form.addEventListener("input", store);
  byId("schema").addEventListener("input", checkSchema);
  byId("schema-sample").addEventListener("click", () => {
    byId("schema").value = JSON.stringify(SAMPLE, null, 2);
    checkSchema();
    store();
  });
}

/**
 * @returns {Record<string, unknown>} the body of POST /tasks
 * @throws {FormError}
 */
export function requestBody() {
  const system = value("system").trim();
  const prompt = value("prompt");
  const stop = value("stop_sequences")
    .split("\n")
    .filter((line) => line !== "");
  const messages = [
    { role: "system", content: system },
    { role: "user", content: prompt },
  ];
  return {
    model: value("model"),
    ...(system ? { messages } : { prompt }),
    ...numbers(),
    ...(stop.length ? { stop_sequences: stop } : {}),
    ...responseFormat(),
    stream: true,
  };
}

function numbers() {
  const given = {};
  for (const name of NUMBERS) {
    const input = /** @type {HTMLInputElement} */ (form.elements.namedItem(name));
    if (input.validity.badInput) throw new FormError(name, "This is no number.");
    if (input.value !== "") given[name] = Number(input.value);
  }
  return given;
}

function responseFormat() {
  const text = value("schema").trim();
  if (!text) return {};
  return {
    response_format: {
      type: "json_schema",
      json_schema: { name: "answer", schema: parsedSchema(text), strict: true },
    },
  };
}

function parsedSchema(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FormError("schema", `This is no JSON: ${error.message}`);
  }
}

function checkSchema() {
  const text = value("schema").trim();
  clear("schema");
  try {
    if (text) parsedSchema(text);
  } catch (error) {
    mark("schema", error.message);
  }
}

/** Takes all errors away. */
export function clearErrors() {
  for (const field of form.elements) if (field.id) clear(field.id);
  setText(byId("form-error"), "");
}

/**
 * Shows an error at the fields that it names, else below the form.
 * @param {{message: string, details?: Record<string, unknown> | null}} error
 */
export function showError(error) {
  const named = Object.entries(error.details ?? {}).map(([name, problem]) => [
    SHOWN_AT[name] ?? name,
    firstSentence(problem),
  ]);
  const known = named.filter(([name]) => form.elements.namedItem(name));
  known.forEach(([name, message]) => mark(name, message));
  if (!known.length) setText(byId("form-error"), error.message);
  else reveal(byId(known[0][0]));
}

/** @param {unknown} problem lists and objects of sentences, as deep as the request */
function firstSentence(problem) {
  if (typeof problem === "string") return problem;
  const inner = Object.values(problem ?? {}).map(firstSentence);
  return inner.find(Boolean) ?? "";
}

function mark(name, message) {
  byId(name).setAttribute("aria-invalid", "true");
  setText(byId(`${name}-error`), message);
}

function clear(name) {
  const message = document.getElementById(`${name}-error`);
  if (!message) return;
  byId(name).removeAttribute("aria-invalid");
  setText(message, "");
}

/** @param {HTMLElement} field */
function reveal(field) {
  for (let box = field.closest("details"); box; box = box.parentElement?.closest("details") ?? null)
    box.open = true;
  field.focus();
}

function value(name) {
  return /** @type {HTMLInputElement} */ (form.elements.namedItem(name)).value;
}

function store() {
  const values = Object.fromEntries(new FormData(form));
  try {
    sessionStorage.setItem(STORAGE_KEY, JSON.stringify(values));
  } catch {
    // Storage is switched off, or full: a reload empties the form.
  }
}

function restore() {
  let values = {};
  try {
    values = JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? "{}");
  } catch {
    return;
  }
  for (const [name, text] of Object.entries(values)) {
    const field = /** @type {HTMLInputElement} */ (form.elements.namedItem(name));
    if (!field) continue;
    field.value = text;
    if (name === "model")
      field.dataset.wanted = text; // its options are not there yet
    else if (text) field.closest("details")?.setAttribute("open", "");
  }
}
