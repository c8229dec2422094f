/** What would become of the playground's task, were it submitted. */

import { byId, figures, setText } from "./element.js";
import { count, dollars, duration, moment } from "./format.js";

/** @param {Record<string, any>} told by POST /tasks?dry_run=true */
export function showDryRun(told) {
  setText(byId("dry-run-verdict"), verdict(told));
  // A request that is not valid goes no further, so nothing else is known of it.
  byId("dry-run-figures").replaceChildren(...(told.model ? [figures(known(told))] : []));
}

export function clearDryRun() {
  setText(byId("dry-run-verdict"), "");
  byId("dry-run-figures").replaceChildren();
}

function verdict({ is_accepted, refusal, would_fail }) {
  if (!is_accepted) {
    const { message, details } = refusal.body;
    const limit = details?.limit ? ` by the limit ${details.limit}` : "";
    return `It would be refused${limit} (${refusal.status}): ${message}`;
  }
  return would_fail ? `It would be accepted, and fail: ${would_fail}` : "It would be accepted.";
}

function known(told) {
  const { eta_seconds: eta, gpu_seconds, cost_usd } = told;
  return {
    "Prompt tokens": tokens(told),
    "Max. tokens": count(told.max_tokens),
    "Messages dropped": count(told.truncated_messages),
    Model: model(told),
    "Would be unloaded": told.unloads.join(", ") || "nothing",
    Queue: `${told.queue}, ${count(told.queue_position)} before it`,
    "Expected start": moment(told.estimated_start_at),
    "Ends in (p10, p50, p90)": eta ? [eta.p10, eta.p50, eta.p90].map(unbroken).join(", ") : "–",
    ...(gpu_seconds !== null && { "GPU time, about": duration(gpu_seconds * 1000) }),
    ...(cost_usd !== null && { "Costs at most": dollars(cost_usd) }),
  };
}

/** Seconds whose unit stays in their line. */
function unbroken(seconds) {
  return duration(seconds * 1000).replaceAll(" ", "\u00a0");
}

function tokens({ prompt_tokens, is_estimated, context_window }) {
  const window = context_window === null ? "" : ` of ${count(context_window)}`;
  return `${is_estimated ? "about " : ""}${count(prompt_tokens)}${window}`;
}

function model({ is_loaded }) {
  if (is_loaded === null) return "needs no loading";
  return is_loaded ? "in memory" : "would be loaded";
}
