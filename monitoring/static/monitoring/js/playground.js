/** The playground: submit a task, or ask what would become of it; watch it, cancel it. */

import { onRemembered, remember, remembered } from "./address.js";
import { follow, followed, startAnswer } from "./answer.js";
import { post } from "./api.js";
import { curlFor } from "./curl.js";
import { clearDryRun, showDryRun } from "./dry-run.js";
import { byId, setText } from "./element.js";
import { clearErrors, requestBody, showError, startForm } from "./form.js";

const INVALID = 400;

const submitButton = byId("submit");
const dryRunButton = byId("dry-run");
const cancelButton = byId("cancel");
/** The request that a dry run was asked for, as long as the form has it. */
let tried = null;

/** Takes up the task that the address names, as after a reload. */
export function startPlayground() {
  startForm();
  startAnswer(() => (cancelButton.disabled = true));
  byId("playground").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    submit();
  });
  byId("playground").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
  });
  byId("playground").addEventListener("input", forgetDryRun);
  dryRunButton.addEventListener("click", dryRun);
  cancelButton.addEventListener("click", cancel);
  byId("copy").addEventListener("click", copy);
  onRemembered("task", take);
  take(remembered("task"));
}

/** @param {string | null} taskId */
function take(taskId) {
  if (taskId && /^task_[0-9a-f]{32}$/.test(taskId) && taskId !== followed()) watch(taskId, true);
}

async function submit() {
  if (submitButton.disabled) return;
  clearErrors();
  forgetDryRun();
  submitButton.disabled = true;
  try {
    const task = await post("/tasks", requestBody());
    remember("task", task.task_id);
    watch(task.task_id, false);
  } catch (error) {
    showError(error);
  } finally {
    submitButton.disabled = false;
  }
}

function forgetDryRun() {
  tried = null;
  clearDryRun();
}

async function dryRun() {
  clearErrors();
  forgetDryRun();
  dryRunButton.disabled = true;
  try {
    const body = requestBody();
    tried = body;
    const told = await post("/tasks?dry_run=true", body);
    if (tried !== body) return;
    showDryRun(told);
    if (told.refusal?.status === INVALID) showError(told.refusal.body);
  } catch (error) {
    showError(error);
  } finally {
    dryRunButton.disabled = false;
  }
}

function watch(taskId, resumed) {
  cancelButton.disabled = false;
  follow(taskId, { resumed });
}

async function cancel() {
  cancelButton.disabled = true;
  try {
    await post(`/tasks/${followed()}/cancel`);
  } catch (error) {
    // 409: it has ended meanwhile, which the stream tells.
    if (error.status !== 409) {
      cancelButton.disabled = false;
      setText(byId("answer-error"), error.message);
    }
  }
}

async function copy() {
  clearErrors();
  const command = byId("command");
  command.hidden = true;
  try {
    setText(command, curlFor(requestBody()));
  } catch (error) {
    showError(error);
    return;
  }
  try {
    await navigator.clipboard.writeText(command.textContent);
    setText(byId("copied"), "Copied.");
  } catch {
    command.hidden = false; // the clipboard is not ours: select it by hand
    setText(byId("copied"), "Select the command below and copy it.");
  }
}
