/** A list of lines, the newest first, that forgets the oldest, can be filtered, and can be paused. */

import { element, setText } from "./element.js";
import { onNextFrame } from "./frame.js";

const MAX_LINES = 200;
const REST_MS = 100;

/**
 * @template Line
 */
export class BoundedFeed {
  /** @type {Line[]} oldest first */
  #lines = [];
  /** @type {Line[]} come since the last frame, or since the pause */
  #fresh = [];
  #numMissed = 0;
  #isPaused = false;
  #spec;
  #draw = onNextFrame(() => this.#render(), REST_MS);

  /**
   * @param {{
   *   list: HTMLElement, empty: HTMLElement, pause: HTMLElement,
   *   create: (line: Line) => HTMLElement, isWanted: (line: Line) => boolean,
   * }} spec
   */
  constructor(spec) {
    this.#spec = spec;
    spec.pause.addEventListener("click", () => this.#pause(!this.#isPaused));
  }

  /** @param {Line} line newer than all before */
  add(line) {
    this.#fresh.push(line);
    if (this.#fresh.length > MAX_LINES) this.#fresh.shift();
    if (this.#isPaused) this.#numMissed += 1;
    this.#draw();
  }

  /** Other lines are wanted now. */
  filter() {
    this.#spec.list.replaceChildren();
    this.#prepend(this.#lines);
  }

  #render() {
    if (this.#isPaused) {
      setText(this.#spec.pause, `Go on (${this.#numMissed} new)`);
      return;
    }
    this.#lines = [...this.#lines, ...this.#fresh].slice(-MAX_LINES);
    this.#prepend(this.#fresh);
    this.#fresh = [];
  }

  #prepend(lines) {
    const { list, empty, create, isWanted } = this.#spec;
    list.prepend(...lines.filter(isWanted).map(create).reverse());
    while (list.childElementCount > MAX_LINES) list.lastElementChild?.remove();
    empty.hidden = list.childElementCount > 0;
  }

  #pause(isPaused) {
    this.#isPaused = isPaused;
    this.#numMissed = 0;
    this.#spec.pause.setAttribute("aria-pressed", String(isPaused));
    setText(this.#spec.pause, isPaused ? "Go on" : "Pause");
    this.#draw();
  }
}

/**
 * @param {string} timestamp
 * @param {string} time
 * @param {string} kind
 * @param {string} state
 * @param {...(Node | string)} what
 */
export function feedLine(timestamp, time, kind, state, ...what) {
  return element(
    "li",
    { "data-state": state },
    element("time", { datetime: timestamp }, time),
    element("span", { class: "kind", title: kind }, kind),
    element("span", { class: "what" }, ...what),
  );
}
