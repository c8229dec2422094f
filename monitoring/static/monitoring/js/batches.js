/** The panel of the batches: those that go on, and those that have just ended. */

import { get, post } from "./api.js";
import { byId, element, setState, setText } from "./element.js";
import { clock, count } from "./format.js";
import { Rows } from "./rows.js";

const STATES = {
  validating: "busy",
  in_progress: "busy",
  finalizing: "busy",
  cancelling: "warn",
  completed: "good",
  failed: "bad",
  expired: "bad",
};
const GOES_ON = ["validating", "in_progress", "finalizing", "cancelling"];
const CANCELLABLE = ["validating", "in_progress"];
const ENDED_WITHIN_SECONDS = 600;

const rows = new Rows(byId("batches"), { key: (batch) => batch.id, create });

/** Reads the newest of them again. */
export async function readBatches() {
  const { data } = await get("/v1/batches?limit=100");
  const shown = data.filter(isShown);
  rows.show(shown);
  byId("batches-empty").hidden = shown.length > 0;
}

function isShown(batch) {
  return GOES_ON.includes(batch.status) || endOf(batch) > Date.now() / 1000 - ENDED_WITHIN_SECONDS;
}

function endOf({ completed_at, failed_at, expired_at, cancelled_at }) {
  return completed_at ?? failed_at ?? expired_at ?? cancelled_at;
}

function create(first) {
  const state = element("span", { class: "badge" });
  const about = element("span", { class: "about" });
  const meter = /** @type {HTMLMeterElement} */ (
    element("meter", { min: 0, max: 1, optimum: 1, "aria-label": "Requests with an answer" })
  );
  const button = element(
    "button",
    {
      type: "button",
      class: "quiet",
      "aria-label": `Cancel ${first.id}`,
      onclick: () => cancel(first.id),
    },
    "Cancel",
  );
  const node = element(
    "li",
    { "data-batch": first.id },
    element("span", { class: "name" }, first.id.slice(0, "batch_".length + 8)),
    about,
    element("span", { class: "end" }, state, button),
    element("div", { class: "meter" }, meter),
  );
  const update = (batch) => {
    setState(state, STATES[batch.status] ?? "none", batch.status.replace("_", " "));
    setText(about, inWords(batch));
    const { total, completed, failed } = batch.request_counts;
    meter.value = total ? (completed + failed) / total : 0;
    button.hidden = !CANCELLABLE.includes(batch.status);
  };
  return { node, update };
}

async function cancel(id) {
  setText(byId("batches-error"), "");
  try {
    await post(`/v1/batches/${id}/cancel`);
  } catch (error) {
    setText(byId("batches-error"), error.message);
  }
  await readBatches().catch(() => {});
}

function inWords({ endpoint, request_counts: { total, completed, failed }, created_at, errors }) {
  const parts = [
    total ? `${count(completed + failed)} of ${count(total)}` : null,
    failed ? `${count(failed)} failed` : null,
    endpoint,
    `since ${clock(new Date(created_at * 1000).toISOString())}`,
    errors?.data[0]?.message,
  ];
  return parts.filter(Boolean).join(", ");
}
