/** The panel of the queues, and the tiles that sum them up. */

import { byId, element, setText } from "./element.js";
import { count, duration } from "./format.js";
import { Rows } from "./rows.js";

const rows = new Rows(byId("queues"), { key: ([name]) => name, create });

/** @param {Record<string, any>} stats the data of `queue_stats`, and of GET /monitor/queue */
export function showQueues({ queues, totals }) {
  const all = Object.entries(queues);
  rows.show(all);
  byId("queues-empty").hidden = all.length > 0;
  setText(byId("tile-pending"), count(totals.pending));
  setText(byId("tile-running"), count(totals.processing));
  const served = all.filter(([, queue]) => queue.workers > 0); // a worker may serve several of them
  byId("tile-workers").replaceChildren(
    count(served.length),
    " ",
    element("small", {}, `of ${count(all.length)}`),
  );
}

function create([name]) {
  const numbers = ["pending", "processing", "workers", "wait"].map(() =>
    element("td", { class: "number" }),
  );
  const depths = element("div", { class: "depths" });
  const node = element(
    "tr",
    { "data-queue": name },
    element("th", { scope: "row" }, name),
    ...numbers,
    element("td", {}, depths),
  );
  const update = ([, queue]) => {
    const texts = [
      count(queue.pending),
      count(queue.processing),
      count(queue.workers),
      wait(queue),
    ];
    numbers.forEach((cell, index) => setText(cell, texts[index]));
    showDepths(depths, queue.by_priority ?? {});
  };
  return { node, update };
}

function wait({ oldest_wait_seconds: seconds }) {
  return duration(seconds === null || seconds === undefined ? null : seconds * 1000);
}

/** The most urgent first. */
function showDepths(parent, byPriority) {
  const entries = Object.entries(byPriority).sort(([a], [b]) => Number(b) - Number(a));
  const shown = entries.map(([priority, tasks]) => `${priority}: ${count(tasks)}`);
  if (parent.textContent === shown.join("")) return;
  parent.replaceChildren(
    ...shown.map((text) =>
      element("span", { class: "depth", title: "priority: pending tasks" }, text),
    ),
  );
}
