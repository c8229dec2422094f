/** The newest tasks, as the events and the API tell them, whichever comes first. */

/**
 * @typedef {import("./feed.js").FeedEvent} FeedEvent
 * @typedef {object} TaskView
 * @property {string} id
 * @property {string} model
 * @property {string} status
 * @property {number} attempt
 * @property {number} position how far it has come: grows with each step of its life
 * @property {string} createdAt
 * @property {string | null} startedAt
 * @property {number | null} tokens
 * @property {string} text the end of what it has generated so far
 * @property {string | null} startsAt when it is expected to, while it waits
 * @property {number | null} waitMs
 * @property {number | null} ranMs
 * @property {string | null} error
 * @property {number} touchedAt
 */

const MAX_TASKS = 100;
const ENDS = {
  "task.completed": "completed",
  "task.failed": "failed",
  "task.cancelled": "cancelled",
};

export class TaskList {
  /** @type {Map<string, TaskView>} oldest first */
  #tasks = new Map();

  /** @returns {TaskView[]} those that are processed, the longest running first */
  running() {
    return [...this.#tasks.values()].filter((task) => task.status === "processing");
  }

  /** @returns {TaskView[]} all that are known, the newest first */
  recent() {
    return [...this.#tasks.values()]
      .sort((a, b) => b.createdAt.localeCompare(a.createdAt))
      .slice(0, MAX_TASKS);
  }

  /** @param {FeedEvent} event a task's */
  apply({ type, timestamp, data }) {
    if (type === "task.progress") {
      this.#progress(data);
      return;
    }
    const seen = { attempt: data.attempt, error: data.error ?? null };
    if (type === "task.queued") {
      const startsAt = data.estimated_start_at;
      this.#move(data, timestamp, { ...seen, status: "pending", startsAt });
    } else if (type === "task.started") {
      this.#move(data, timestamp, {
        ...seen,
        status: "processing",
        startedAt: timestamp,
        waitMs: data.queue_wait_ms,
      });
    } else if (type in ENDS) {
      const figures = {
        tokens: data.completion_tokens,
        waitMs: data.queue_wait_ms,
        ranMs: data.inference_ms,
      };
      this.#move(data, timestamp, { ...seen, ...figures, status: ENDS[type] });
    }
  }

  /**
   * @param {Record<string, any>[]} bodies tasks of the API, the newest first; all running ones too
   * @param {number} askedAt `performance.now()` before they were asked for
   */
  merge(bodies, askedAt) {
    const named = new Set(bodies.map((body) => body.task_id));
    for (const task of this.running()) {
      if (!named.has(task.id) && task.touchedAt < askedAt) this.#tasks.delete(task.id);
    }
    for (const body of bodies.toReversed()) {
      const started = body.started_at ? Date.parse(body.started_at) : null;
      const figures = {
        createdAt: body.created_at,
        startedAt: body.started_at,
        startsAt: body.estimated_start_at,
        tokens: body.result?.usage.completion_tokens ?? null,
        waitMs: started && started - Date.parse(body.created_at),
        ranMs: started && body.finished_at && Date.parse(body.finished_at) - started,
      };
      this.#move(body, body.created_at, {
        status: body.status,
        attempt: body.attempt,
        error: body.error,
        ...figures,
      });
    }
  }

  #move({ task_id: id, model }, timestamp, change) {
    const known = this.#tasks.get(id) ?? blank(id, model, timestamp);
    const position = positionOf(change.status, change.attempt);
    if (position < known.position) return;
    // What one source does not tell, the other may have told before.
    const told = Object.entries(change).filter(([, value]) => value !== null);
    this.#tasks.set(id, {
      ...known,
      ...Object.fromEntries(told),
      model,
      position,
      touchedAt: performance.now(),
    });
    if (change.status === "pending") this.#tasks.get(id).text = "";
    this.#trim();
  }

  #progress({ task_id: id, attempt, tokens_generated, partial_text }) {
    const task = this.#tasks.get(id);
    if (task?.status !== "processing" || task.attempt !== attempt) return;
    task.tokens = tokens_generated;
    task.text = partial_text;
    task.touchedAt = performance.now();
  }

  #trim() {
    if (this.#tasks.size <= MAX_TASKS) return;
    for (const task of this.#tasks.values()) {
      if (task.status === "processing") continue;
      this.#tasks.delete(task.id);
      return;
    }
  }
}

/** A task that is queued again after a lost worker stands before its next start, and behind its last. */
function positionOf(status, attempt) {
  if (status === "pending") return attempt * 2;
  return status === "processing" ? attempt * 2 - 1 : Number.POSITIVE_INFINITY;
}

/** @returns {TaskView} */
function blank(id, model, createdAt) {
  return {
    id,
    model,
    createdAt,
    status: "pending",
    attempt: 0,
    position: -1,
    startedAt: null,
    startsAt: null,
    tokens: null,
    text: "",
    waitMs: null,
    ranMs: null,
    error: null,
    touchedAt: 0,
  };
}
