/** The panel of the events: what happened, in order, each once. */

import { BoundedFeed, feedLine } from "./bounded-feed.js";
import { byId, element } from "./element.js";
import { clock, count, duration } from "./format.js";
import { costFigures, reportLink } from "./report.js";

/** @typedef {import("./feed.js").FeedEvent} FeedEvent */

const KINDS = {
  "task.queued": "warn",
  "task.started": "busy",
  "task.completed": "good",
  "task.failed": "bad",
  "task.cancelled": "none",
  "model.loaded": "good",
  "model.unloaded": "none",
};
const wanted = new Set(Object.keys(KINDS));

const lines = new BoundedFeed({
  list: byId("events"),
  empty: byId("events-empty"),
  pause: byId("events-pause"),
  create,
  isWanted: (event) => wanted.has(event.type) || !(event.type in KINDS),
});

/** @param {FeedEvent} event a logged one */
export function addEvent(event) {
  lines.add(event);
}

/** Lets the user choose the kinds. */
export function startEventLog() {
  byId("event-kinds").append(...Object.keys(KINDS).map(chip));
}

function chip(kind) {
  const choose = (/** @type {Event} */ { target }) => {
    if (/** @type {HTMLInputElement} */ (target).checked) wanted.add(kind);
    else wanted.delete(kind);
    lines.filter();
  };
  return element(
    "label",
    {},
    element("input", { type: "checkbox", checked: true, onchange: choose }),
    kind.replace(/^task\./, ""),
  );
}

/** @param {FeedEvent} event */
function create({ seq, timestamp, type, data }) {
  const subject = data.task_id ? [reportLink(data.task_id), " "] : [];
  const node = feedLine(
    timestamp,
    clock(timestamp),
    type,
    KINDS[type] ?? "none",
    ...subject,
    inWords(type, data),
  );
  node.dataset.seq = String(seq);
  node.dataset.type = type;
  return node;
}

function costs(data) {
  return Object.entries(costFigures(data)).map(([name, cost]) => `${name} ${cost}`);
}

function inWords(type, data) {
  const parts = {
    "task.queued": () => [
      data.model,
      `priority ${data.priority}`,
      data.attempt ? `given back after attempt ${data.attempt}` : null,
    ],
    "task.started": () => [
      data.model,
      `waited ${duration(data.queue_wait_ms)}`,
      data.attempt > 1 ? `attempt ${data.attempt}` : null,
    ],
    "task.completed": () => [
      data.model,
      `${count(data.completion_tokens)} tokens in ${duration(data.inference_ms)}`,
      data.finish_reason,
      ...costs(data),
    ],
    "task.failed": () => [data.model, data.error_code, data.error, ...costs(data)],
    "task.cancelled": () => [data.model, `${count(data.completion_tokens)} tokens`, ...costs(data)],
    "model.loaded": () => [data.model, `in ${duration(data.load_ms)}`],
    "model.unloaded": () => [data.model],
  }[type];
  return (parts?.() ?? [JSON.stringify(data)]).filter(Boolean).join(", ");
}
