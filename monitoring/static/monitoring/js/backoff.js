/** How long to wait before the next try: growing, and never the same for all who wait. */

const FIRST_MS = 300;
const LONGEST_MS = 5000;

export class Backoff {
  #numTries = 0;

  /** Milliseconds before the next try. */
  next() {
    const longest = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.#numTries);
    this.#numTries += 1;
    return Math.max(FIRST_MS, longest * (0.5 + Math.random() / 2));
  }

  /** The last try went well. */
  reset() {
    this.#numTries = 0;
  }
}
