/** How the states of a task look: the color goes with the word, never alone. */

/** @type {Record<string, string>} */
export const TASK_STATES = {
  pending: "warn",
  processing: "busy",
  completed: "good",
  failed: "bad",
  cancelled: "none",
};
