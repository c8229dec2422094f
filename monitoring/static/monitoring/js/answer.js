/** The playground's answer: the text as it comes, and its figures. */

import { get } from "./api.js";
import { byId, setState, setText } from "./element.js";
import { count, duration, rate } from "./format.js";
import { onNextFrame } from "./frame.js";
import { openReport } from "./report.js";
import { TASK_STATES } from "./task-state.js";
import { TokenStream } from "./token-stream.js";

const RATE_MS = 3000;
// What was generated before a reload comes all at once: it says nothing about the speed.
const CATCH_UP_MS = 400;
const TICK_MS = 250;
const POSITION_EVERY_MS = 2000;

const box = byId("answer");
const text = document.createTextNode("");

/** @type {TokenStream | null} */
let stream = null;
let taskId = "";
let unseen = "";
let isVoid = false;
let openedAt = 0;
let startedAt = 0;
let isResumed = false;
let numTokens = 0;
/** @type {number[]} when the last tokens came */
let arrivals = [];
/** Whether no worker has taken it so far. */
let isWaiting = false;
/** @type {() => void} */
let onEnd = () => {};

const draw = onNextFrame(render);

/** @param {() => void} whenEnded called when a task has ended, or is gone */
export function startAnswer(whenEnded) {
  onEnd = whenEnded;
  byId("answer-report").addEventListener("click", (/** @type {Event} */ event) => {
    event.preventDefault();
    openReport(taskId);
  });
  box.dataset.hint = "The answer appears here while it is generated.";
  setInterval(() => stream && showLiveFigures(), TICK_MS);
  setInterval(showPosition, POSITION_EVERY_MS);
}

/**
 * Follows a task.
 * @param {string} id
 * @param {{resumed: boolean}} how `resumed`: it may have run for a while
 */
export function follow(id, { resumed }) {
  stream?.close();
  taskId = id;
  isResumed = resumed;
  openedAt = startedAt = performance.now();
  for (const name of ["tokens", "rate", "ttft", "total"]) setText(byId(`answer-${name}`), "–");
  setText(byId("answer-error"), "");
  showStatus("pending", "Submitted.");
  byId("answer-report").hidden = false;
  byId("answer-report").href = `#report=${id}`;
  box.setAttribute("aria-busy", "true");
  stream = new TokenStream(id, { onToken, onRestart, onEnd: showEnd, onGone: showGone });
  showPosition();
}

/** @returns {string} the task that is followed */
export function followed() {
  return taskId;
}

/** @param {import("./feed.js").FeedEvent} event of any task */
export function hear({ type, data }) {
  if (type === "task.started" && data.task_id === taskId && stream) showStart();
}

function showStart() {
  if (isWaiting) startedAt = performance.now();
  isWaiting = false;
  box.dataset.hint = "Waiting for the first token.";
  showStatus("processing", "Generating.");
}

/** Where a waiting task stands; another one may overtake it. */
async function showPosition() {
  if (!isWaiting || !stream || document.visibilityState !== "visible") return;
  const id = taskId;
  const task = await get(`/tasks/${id}`).catch(() => null); // the next time, then
  if (id !== taskId || !isWaiting || !stream || !task) return;
  if (task.status === "processing") showStart();
  else if (task.status === "pending") {
    box.dataset.hint = [place(task.queue_position), untilEnd(task.eta_seconds)].join(" ").trim();
    showStatus("pending", "Waiting in the queue.");
  }
}

/** @param {number | null} position null when it has just left the queue */
function place(position) {
  if (position === null) return "Waiting for the first token.";
  return position === 0
    ? "Next in the queue."
    : `Waiting in the queue, ${count(position)} before it.`;
}

/** @param {{p10: number, p50: number, p90: number} | null} eta null while nobody knows */
function untilEnd(eta) {
  return eta ? `Its answer is expected to end in ${duration(eta.p10 * 1000)} to ${duration(eta.p90 * 1000)}.` : "";
}

function onRestart() {
  unseen = "";
  isVoid = true;
  isWaiting = true; // at the start, and again when its worker was lost
  numTokens = 0;
  arrivals = [];
  draw();
}

function onToken(/** @type {string} */ piece, /** @type {number} */ index) {
  const now = performance.now();
  unseen += piece;
  numTokens = index + 1;
  if (index === 0) showStart();
  if (!isResumed && index === 0) setText(byId("answer-ttft"), duration(now - startedAt));
  if (!isResumed || now - openedAt > CATCH_UP_MS) arrivals.push(now);
  draw();
}

function render() {
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  if (!text.isConnected && unseen) box.append(text);
  if (isVoid) text.data = unseen;
  else if (unseen) text.appendData(unseen);
  if (!text.data) text.remove(); // an empty box shows its hint
  unseen = "";
  isVoid = false;
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

function showLiveFigures() {
  const now = performance.now();
  arrivals = arrivals.filter((at) => at > now - RATE_MS);
  const seconds = (now - (arrivals[0] ?? now)) / 1000;
  setText(byId("answer-tokens"), count(numTokens));
  setText(byId("answer-rate"), seconds > 0.2 ? rate((arrivals.length - 1) / seconds) : "–");
  if (!isResumed) setText(byId("answer-total"), duration(now - openedAt));
}

async function showEnd(task) {
  stream = null;
  isWaiting = false;
  if (task.result) {
    unseen = task.result.text; // the saved result is the truth, the stream a preview
    isVoid = true;
  }
  box.dataset.hint = "There is no text.";
  box.setAttribute("aria-busy", "false");
  const tokens = task.result?.usage.completion_tokens ?? 0;
  showStatus(task.status, `${capitalized(task.status)}: ${count(tokens)} tokens.`);
  setText(byId("answer-tokens"), count(tokens));
  setText(byId("answer-error"), task.error ?? "");
  draw();
  onEnd();
  await showMetrics(task.task_id);
}

/** The service's own times, instead of those seen from here. */
async function showMetrics(id) {
  try {
    const { metrics } = await get(`/tasks/${id}/report`);
    if (id !== taskId) return;
    setText(byId("answer-rate"), rate(metrics.tokens_per_second));
    setText(byId("answer-ttft"), duration(metrics.ttft_ms));
    setText(byId("answer-total"), duration(metrics.total_ms));
  } catch {
    // The figures seen from here stay.
  }
}

function showGone(message) {
  stream = null;
  box.setAttribute("aria-busy", "false");
  box.dataset.hint = "The answer appears here while it is generated.";
  byId("answer-state").hidden = true;
  byId("answer-report").hidden = true;
  setText(byId("answer-error"), message);
  onEnd();
}

function showStatus(status, sentence) {
  byId("answer-state").hidden = false;
  setState(byId("answer-state"), TASK_STATES[status] ?? "none", status);
  setText(byId("answer-status"), sentence);
}

function capitalized(word) {
  return word[0].toUpperCase() + word.slice(1);
}
