/** The panel of the models, with what is loaded, and the playground's choice of them. */

import { get, post } from "./api.js";
import { byId, element, setState, setText } from "./element.js";
import { bytes, clock, count, duration } from "./format.js";
import { Rows } from "./rows.js";
import { may } from "./who.js";

const STATES = { loaded: "good", loading: "busy", downloading: "busy", error: "bad" };
const WAIT_SECONDS = 60;
// Their files are not here yet, so no task can have them.
const MISSING = ["registered", "downloading"];

const rows = new Rows(byId("models"), { key: (model) => model.name, create });
/** @type {Map<string, "load" | "unload">} what was asked for here and is not done yet */
const asked = new Map();
/** @type {Record<string, any>[]} */
let known = [];
let isReading = false;
let isStale = false;

/** Reads them again. What changes while they are read is read once more. */
export async function readModels() {
  isStale = true;
  if (isReading) return;
  isReading = true;
  try {
    while (isStale) {
      isStale = false;
      ({ models: known } = await get("/models?limit=1000"));
      show();
    }
  } finally {
    isReading = false;
  }
}

/** Those with several endpoints change all the time, without an event. */
export async function refreshModels() {
  if (known.some(severalEndpoints)) await readModels();
}

/** @param {{model: string, status: string, downloaded_bytes: number, bytes_per_second: number | null}} progress */
export async function showDownload(progress) {
  const model = known.find(({ name }) => name === progress.model);
  if (model?.status !== progress.status) return readModels();
  model.download = progress;
  show();
}

function show() {
  rows.show(known);
  byId("models-empty").hidden = known.length > 0;
  showChoice(known.filter(takesTasks).map((model) => model.name));
}

function takesTasks({ provider, status }) {
  return provider !== "embedding" && !MISSING.includes(status);
}

/** @param {string[]} names */
function showChoice(names) {
  const select = /** @type {HTMLSelectElement} */ (byId("model"));
  const shown = [...select.options].map((option) => option.value);
  if (shown.join() === names.join()) return;
  const chosen = select.value || select.dataset.wanted;
  select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  select.value = names.includes(chosen) ? chosen : firstChoice(names);
}

/** A loaded model answers at once; an echo is for trying things out. */
function firstChoice(names) {
  const local = known.filter((model) => model.provider === "local");
  return (local.find((model) => model.loaded) ?? local[0])?.name ?? names[0] ?? "";
}

function create(first) {
  const state = element("span", { class: "badge" });
  const about = element("span", { class: "about" });
  const button = /** @type {HTMLButtonElement} */ (
    element("button", {
      type: "button",
      class: "quiet",
      onclick: () => act(first.name, wish(first.name)),
    })
  );
  const node = element(
    "li",
    { "data-model": first.name },
    element("span", { class: "name" }, first.name),
    about,
    element("span", { class: "end" }, state, button),
  );
  const update = (model) => {
    const pending = asked.get(model.name) ?? model.requested;
    setState(
      state,
      STATES[model.status] ?? "none",
      pending === "unload" ? "unloading" : model.status,
    );
    setText(about, inWords(model));
    const isFile = model.provider === "local" || model.status === "registered";
    button.hidden = !isFile || !may("admin");
    button.disabled = Boolean(pending) || ["loading", "downloading"].includes(model.status);
    setText(button, verb(model));
    button.setAttribute("aria-label", `${button.textContent} ${model.name}`);
  };
  return { node, update };
}

function verb({ loaded, status }) {
  if (loaded) return "Unload";
  return status === "registered" ? "Download" : "Load";
}

function wish(name) {
  return known.find((model) => model.name === name)?.loaded ? "unload" : "load";
}

/** @param {"load" | "unload"} path */
async function act(name, path) {
  asked.set(name, path);
  setText(byId("models-error"), "");
  show();
  try {
    await post(`/models/${path}?wait=${WAIT_SECONDS}`, { model: name }, (WAIT_SECONDS + 5) * 1000);
  } catch (error) {
    setText(byId("models-error"), error.message);
  } finally {
    asked.delete(name);
    await readModels().catch(() => show());
  }
}

function inWords(model) {
  const parts = [
    model.provider,
    model.size_bytes ? bytes(model.size_bytes) : null,
    model.context_window ? `${count(model.context_window)} tokens of context` : null,
    model.loaded && model.unload_at ? `kept until ${clock(model.unload_at)}` : null,
    model.download ? downloaded(model.download) : null,
    ...(severalEndpoints(model) ? model.endpoints.map(endpointInWords) : []),
    model.status_message || null,
  ];
  return parts.filter(Boolean).join(", ");
}

function severalEndpoints({ endpoints }) {
  return (endpoints?.length ?? 0) > 1;
}

/** How an endpoint is, where that is known: an api worker has asked it of late. */
function endpointInWords({ name, health, in_flight: calls, limit, latency_ms: latency }) {
  if (health === null) return name;
  const state = health === "healthy" ? "" : ` ${health.replace("_", " ")}`;
  const time = latency === null ? "" : `, ${duration(latency)}`;
  return `${name}${state} (${calls} of ${limit} calls${time})`;
}

/** How much of a file is here; how fast it comes only an event says. */
function downloaded({ downloaded_bytes: arrived, total_bytes: all, bytes_per_second: speed }) {
  const share = all ? `${bytes(arrived)} of ${bytes(all)}` : bytes(arrived);
  return speed ? `${share} at ${bytes(speed)}/s` : share;
}
