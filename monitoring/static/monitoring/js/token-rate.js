/** Tokens per second, counted from what the tasks report of themselves. */

/** @typedef {import("./feed.js").FeedEvent} FeedEvent */

const KEPT_SECONDS = 310;
const ENDS = new Set(["task.completed", "task.failed", "task.cancelled"]);

export class TokenRate {
  /** @type {Map<number, number>} second → tokens */
  #bins = new Map();
  /** @type {Map<string, {attempt: number, tokens: number, at: number}>} what each running task had last */
  #seen = new Map();

  /** @param {FeedEvent} event a task's */
  add({ type, timestamp, data }) {
    const at = Date.parse(timestamp) / 1000;
    const { task_id: id, attempt } = data;
    if (type === "task.started") this.#seen.set(id, { attempt, tokens: 0, at });
    else if (type === "task.progress") this.#count(data, data.tokens_generated, at, null);
    else if (ENDS.has(type)) {
      this.#count(data, data.completion_tokens, at, at - (data.inference_ms ?? 0) / 1000);
      this.#seen.delete(id);
    }
  }

  /**
   * @param {number} now in seconds
   * @param {number} numSeconds
   * @returns {[number[], number[]]} each full second, and its tokens
   */
  series(now, numSeconds) {
    const last = Math.floor(now) - 1;
    const seconds = Array.from({ length: numSeconds }, (_, index) => last - numSeconds + 1 + index);
    return [seconds, seconds.map((second) => this.#bins.get(second) ?? 0)];
  }

  /** @param {number} now in seconds */
  current(now) {
    const [, lately] = this.series(now, 3);
    return lately.reduce((sum, tokens) => sum + tokens, 0) / lately.length;
  }

  /**
   * Counts what is new since the last report, evenly over the time since, or since the start. Where
   * that is not known either, what came before is left out: all at once it would be a peak.
   */
  #count({ task_id, attempt }, total, at, startedAt) {
    const before = this.#seen.get(task_id);
    const isKnown = before?.attempt === attempt;
    const from = isKnown ? before : { tokens: startedAt === null ? total : 0, at: startedAt ?? at };
    this.#seen.set(task_id, { attempt, tokens: total, at });
    this.#spread(Math.max(0, total - from.tokens), from.at, at);
    this.#forget(at);
  }

  #spread(tokens, from, to) {
    const length = to - from;
    if (length <= 0) {
      this.#put(Math.floor(to), tokens);
      return;
    }
    for (let second = Math.floor(from); second <= Math.floor(to); second += 1) {
      const share = Math.min(to, second + 1) - Math.max(from, second);
      this.#put(second, (tokens * share) / length);
    }
  }

  #put(second, tokens) {
    this.#bins.set(second, (this.#bins.get(second) ?? 0) + tokens);
  }

  #forget(now) {
    if (this.#bins.size <= KEPT_SECONDS * 2) return;
    for (const second of this.#bins.keys())
      if (second < now - KEPT_SECONDS) this.#bins.delete(second);
    for (const [id, { at }] of this.#seen) if (at < now - KEPT_SECONDS) this.#seen.delete(id);
  }
}
