/** The tokens of one task by Server-Sent Events, until it has ended, over breaks of the connection. */

import { BASE, get } from "./api.js";
import { Backoff } from "./backoff.js";

const ENDS = ["completed", "failed", "cancelled"];

export class TokenStream {
  #taskId;
  #listener;
  #backoff = new Backoff();
  /** @type {EventSource | null} */
  #source = null;
  /** @type {number | undefined} */
  #retry;

  /**
   * @param {string} taskId
   * @param {{
   *   onToken: (text: string, index: number) => void,
   *   onRestart: () => void,
   *   onEnd: (task: Record<string, any>) => void,
   *   onGone: (message: string) => void,
   * }} listener `onRestart`: all text so far is void; `onGone`: there is no such task
   */
  constructor(taskId, listener) {
    this.#taskId = taskId;
    this.#listener = listener;
    this.#open();
  }

  close() {
    clearTimeout(this.#retry);
    this.#source?.close();
    this.#source = null;
  }

  #open() {
    const source = new EventSource(`${BASE}/tasks/${this.#taskId}/stream`);
    this.#source = source;
    // A new source tells all from the start. One that loses its connection goes on by itself.
    this.#listener.onRestart();
    source.addEventListener("open", () => this.#backoff.reset());
    source.addEventListener("token", ({ data }) => {
      const { text, index } = JSON.parse(data);
      this.#listener.onToken(text, index);
    });
    source.addEventListener("restart", () => this.#listener.onRestart());
    for (const name of ENDS)
      source.addEventListener(name, ({ data }) => this.#end(JSON.parse(data)));
    source.addEventListener(
      "error",
      () => source.readyState === EventSource.CLOSED && source === this.#source && this.#refused(),
    );
  }

  #end(task) {
    this.close();
    this.#listener.onEnd(task);
  }

  /** The browser has given up: the answer was no stream. */
  async #refused() {
    this.close();
    try {
      const task = await get(`/tasks/${this.#taskId}`);
      if (ENDS.includes(task.status)) this.#end(task);
      else this.#openLater();
    } catch (error) {
      if (error.status === 404) this.#listener.onGone(error.message);
      else this.#openLater();
    }
  }

  #openLater() {
    this.#retry = setTimeout(() => this.#open(), this.#backoff.next());
  }
}
