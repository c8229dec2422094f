/** The panels of the running tasks, with their growing texts, and of the recent ones. */

import { byId, element, setState, setText } from "./element.js";
import { clock, count, duration, rate } from "./format.js";
import { reportLink } from "./report.js";
import { Rows } from "./rows.js";
import { TASK_STATES } from "./task-state.js";

/** @typedef {import("./task-list.js").TaskView} TaskView */

const cards = new Rows(byId("running"), { key: cardKey, create: card });
const lines = new Rows(byId("recent"), { key: (task) => task.id, create: line });

/** @param {import("./task-list.js").TaskList} tasks */
export function showTasks(tasks) {
  const running = tasks.running();
  cards.show(running);
  byId("running-empty").hidden = running.length > 0;
  const recent = tasks.recent();
  lines.show(recent);
  byId("recent-empty").hidden = recent.length > 0;
}

/** @param {TaskView} task */
function cardKey(task) {
  return `${task.id}/${task.attempt}`;
}

/** @param {TaskView} first */
function card(first) {
  const figures = element("span", { class: "muted" });
  const text = document.createTextNode("");
  const head = element(
    "div",
    { class: "bar" },
    reportLink(first.id),
    element("span", {}, first.model),
    figures,
  );
  const pre = element("pre", {}, element("span", {}, text));
  const node = element("li", { class: "card", "data-task": first.id }, head, pre);
  const update = (/** @type {TaskView} */ task) => {
    const ranMs = Date.now() - Date.parse(task.startedAt ?? "");
    const tokens = task.tokens ?? 0;
    const speed = tokens && ranMs > 0 ? `, ${rate((tokens / ranMs) * 1000)}/s` : "";
    setText(figures, `${count(tokens)} tokens${speed}, ${duration(Math.max(0, ranMs))}`);
    if (text.data !== task.text) text.data = task.text;
  };
  return { node, update };
}

/** @param {TaskView} first */
function line(first) {
  const state = element("span", { class: "badge" });
  const [tokens, waited, ran] = ["tokens", "waited", "ran"].map(() =>
    element("td", { class: "number" }),
  );
  const node = element(
    "tr",
    { "data-task": first.id },
    element("td", {}, reportLink(first.id)),
    element("td", {}, state),
    element("td", { class: "name-cell", title: first.model }, first.model),
    tokens,
    waited,
    ran,
    element("td", {}, clock(first.createdAt)),
  );
  const update = (/** @type {TaskView} */ task) => {
    setState(state, TASK_STATES[task.status] ?? "none", task.status);
    state.title = task.error ?? "";
    setText(tokens, count(task.tokens));
    const waits = task.status === "pending" && Date.parse(task.startsAt ?? "") > Date.now();
    setText(waited, waits ? `until ${clock(task.startsAt)}` : duration(task.waitMs));
    waited.title = waits ? "When it is expected to start" : "";
    setText(ran, duration(task.ranMs));
  };
  return { node, update };
}
