/** The report of a task, in a dialog; one that has ended can be submitted anew from there. */

import { onRemembered, remember, remembered } from "./address.js";
import { BASE, get, post } from "./api.js";
import { byId, element, figures, setState, setText } from "./element.js";
import { clock, count, dollars, duration, joules, moment, rate, shortId } from "./format.js";
import { TASK_STATES } from "./task-state.js";

const dialog = byId("report");
const requeueButton = byId("report-requeue");
let shown = "";

/**
 * @param {string} taskId
 * @returns {HTMLElement} a link that opens the report and keeps what else the address remembers
 */
export function reportLink(taskId) {
  const open = (/** @type {MouseEvent} */ event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    openReport(taskId);
  };
  return element(
    "a",
    { href: `#report=${taskId}`, onclick: open, title: `Report of ${taskId}` },
    shortId(taskId),
  );
}

/** @param {string} taskId */
export function openReport(taskId) {
  remember("report", taskId);
  show(taskId);
}

/** Opens the report that the address names, now and whenever it changes. */
export function startReports() {
  byId("report-close").addEventListener("click", () => dialog.close());
  requeueButton.addEventListener("click", requeue);
  dialog.addEventListener(
    "click",
    (/** @type {MouseEvent} */ event) => event.target === dialog && dialog.close(),
  );
  dialog.addEventListener("close", () => remember("report", null));
  onRemembered("report", (taskId) => (taskId ? show(taskId) : dialog.close()));
  const taskId = remembered("report");
  if (taskId) show(taskId);
}

async function show(taskId) {
  shown = taskId;
  const path = `/tasks/${encodeURIComponent(taskId)}`;
  setText(byId("report-title"), `Report of ${taskId}`);
  setState(byId("report-state"), "none", "");
  setText(byId("report-error"), "");
  byId("report-json").href = `${BASE}${path}/report`;
  byId("report-export").href = `${BASE}${path}/export`;
  byId("report-requeued").replaceChildren();
  requeueButton.hidden = true;
  byId("report-body").replaceChildren();
  if (!dialog.open) dialog.showModal();
  try {
    const report = await get(`${path}/report`);
    if (taskId === shown) fill(report);
  } catch (error) {
    if (taskId === shown) setText(byId("report-error"), error.message);
  }
}

/** Submits the task anew, and says which one that made. */
async function requeue() {
  const taskId = shown;
  requeueButton.disabled = true;
  setText(byId("report-error"), "");
  try {
    const { task_id: made } = await post(`/tasks/${encodeURIComponent(taskId)}/requeue`);
    if (taskId !== shown) return;
    const link = reportLink(made);
    setText(link, made);
    byId("report-requeued").replaceChildren("Submitted anew as ", link);
    link.focus();
    requeueButton.hidden = true; // each task is requeued once
  } catch (error) {
    if (taskId === shown) setText(byId("report-error"), error.message);
  } finally {
    requeueButton.disabled = false;
  }
}

function fill(report) {
  const { task, metrics, tokens } = report;
  setState(byId("report-state"), TASK_STATES[task.status] ?? "none", task.status);
  requeueButton.hidden = !task.finished_at || Boolean(task.requeued_as);
  const parts = [
    figures({
      Model: task.model,
      Priority: task.priority,
      Submitted: moment(task.created_at),
      ...links(task),
      ...expected(task),
      "Queue wait": duration(metrics.queue_wait_ms),
      "Model load": duration(metrics.model_load_ms),
      "First token": duration(metrics.ttft_ms),
      Inference: duration(metrics.inference_ms),
      Total: duration(metrics.total_ms),
      "Tokens/s": rate(metrics.tokens_per_second),
      "Prompt tokens": count(tokens?.prompt_tokens),
      "of them cached": count(tokens?.cached_tokens),
      "Answer tokens": count(tokens?.completion_tokens),
      "of them drafted": count(tokens?.accepted_prediction_tokens),
      ...costFigures(report),
      ...swapFigures(report),
      "Finish reason": task.result?.finish_reason ?? "–",
    }),
    task.error &&
      section("Error", element("p", { class: "error" }, `${task.error_code}: ${task.error}`)),
    section(
      report.prompt === null ? "Messages" : "Prompt",
      element("pre", { tabindex: "0" }, question(report)),
    ),
    task.result && section("Answer", element("pre", { tabindex: "0" }, task.result.text)),
    section(
      "Parameters as used",
      element("pre", { tabindex: "0" }, JSON.stringify(report.params, null, 2)),
    ),
    report.provenance &&
      section(
        "Provenance",
        element("pre", { tabindex: "0" }, JSON.stringify(report.provenance, null, 2)),
      ),
    section("Attempts", attemptTable(report.attempts)),
    section("Log", logLines(report.logs)),
  ];
  byId("report-body").replaceChildren(...parts.filter(Boolean));
}

/** The tasks that it was made of, and that was made of it. */
function links({ requeued_from, requeued_as }) {
  const known = {};
  if (requeued_from) known["Requeued from"] = reportLink(requeued_from);
  if (requeued_as) known["Requeued as"] = reportLink(requeued_as);
  return known;
}

/** When it starts and ends, while that lies ahead and is known. */
function expected({ status, estimated_start_at, estimated_finish_at, eta_seconds }) {
  if (!eta_seconds) return {};
  const end = `${moment(estimated_finish_at)}, in ${duration(eta_seconds.p10 * 1000)} to ${duration(eta_seconds.p90 * 1000)}`;
  return {
    ...(status === "pending" && { "Expected start": moment(estimated_start_at) }),
    "Expected end": end,
  };
}

/** Those that are known: local models take time and energy, cloud models money. */
export function costFigures({ gpu_seconds = null, energy_joules = null, cost_usd = null }) {
  const known = {};
  if (gpu_seconds !== null) known["GPU time"] = duration(gpu_seconds * 1000);
  if (energy_joules !== null) known.Energy = joules(energy_joules);
  if (cost_usd !== null) known.Cost = dollars(cost_usd);
  return known;
}

/** For how long models that run may put it off, and which part of the time loads may take. */
function swapFigures({ swap_bounds: bounds }) {
  if (!bounds) return {};
  const { wait_past_turn_seconds: wait, load_share: share } = bounds;
  return {
    "Waits past its turn, at most": duration(wait * 1000),
    ...(share !== null && { "Time for loads, at most": `${rate(share * 100)} %` }),
  };
}

function section(title, content) {
  return element("section", {}, element("h3", {}, title), content);
}

function question({ prompt, messages }) {
  return prompt ?? (messages ?? []).map(({ role, content }) => `${role}: ${content}`).join("\n\n");
}

function attemptTable(attempts) {
  if (!attempts.length) return element("p", { class: "empty" }, "Not started yet.");
  const titles = ["No.", "Outcome", "Model", "Endpoint", "Started", "Ended", "Cost", "Worker"];
  const head = element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)));
  const rows = attempts.map(
    ({ number, outcome, model, endpoint, started_at, ended_at, worker, ...costs }) => {
      const cost = Object.values(costFigures(costs)).join(", ") || "–";
      const times = [moment(started_at), ended_at ? clock(ended_at) : "–"];
      const cells = [number, outcome, model, endpoint ?? "–", ...times, cost, worker];
      return element("tr", {}, ...cells.map((text) => element("td", {}, text)));
    },
  );
  return element(
    "div",
    { class: "scroll" },
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
  );
}

function logLines(lines) {
  if (!lines.length) return element("p", { class: "empty" }, "No lines.");
  const items = lines.map(({ timestamp, level, message }) =>
    element(
      "li",
      {},
      element("time", { datetime: timestamp }, clock(timestamp)),
      element("span", { class: "kind" }, level),
      element("span", { class: "what" }, message),
    ),
  );
  return element("ol", { class: "feed" }, ...items);
}
