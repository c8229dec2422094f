/** The WebSocket: every event once and in order, over any number of connections. */

import { Backoff } from "./backoff.js";
import { may } from "./who.js";

/**
 * @typedef {{type: string, seq: number, timestamp: string, data: Record<string, any>}} FeedEvent
 */

// The next of its kind supersedes each of these: they carry the number of the last logged event.
const TRANSIENT = new Set([
  "task.progress",
  "model.download_progress",
  "gpu_stats",
  "queue_stats",
  "log",
]);
const SUBSCRIPTION = ["task.*", "model.*", "queue_stats"];
const MONITOR_SUBSCRIPTION = ["gpu_stats", "log"];
const PING_AFTER_MS = 10_000;
const LOST_AFTER_MS = 20_000;

/** @param {FeedEvent} event whether it has a number of its own, and is told again after a break */
export function isLogged(event) {
  return event.type.includes(".") && !TRANSIENT.has(event.type);
}

export class Feed {
  #listener;
  /** @type {number | null} of the last event that was told */
  #seq = null;
  /** @type {WebSocket | null} */
  #socket = null;
  #backoff = new Backoff();
  #heardAt = 0;
  #isConnected = false;
  /** @type {number | undefined} */
  #retry;

  /**
   * @param {{
   *   onConnected: (seq: number | null, isFirst: boolean) => Promise<FeedEvent[]>,
   *   onLost: (wasConnected: boolean) => void,
   *   onEvent: (event: FeedEvent) => void,
   *   onGap: () => void,
   * }} listener `onConnected` answers events from before `seq` to tell first; `onGap`: some are gone for good
   */
  constructor(listener) {
    this.#listener = listener;
  }

  start() {
    this.#connect();
    setInterval(() => this.#checkLife(), PING_AFTER_MS / 2);
    const hurry = () => document.visibilityState === "visible" && this.#hurry();
    document.addEventListener("visibilitychange", hurry);
    addEventListener("online", hurry);
    addEventListener("pageshow", hurry);
  }

  #connect() {
    clearTimeout(this.#retry);
    const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/ws/monitor`);
    this.#socket = socket;
    this.#heardAt = performance.now();
    socket.onmessage = ({ data }) => {
      this.#heardAt = performance.now();
      this.#receive(socket, JSON.parse(data));
    };
    socket.onclose = () => this.#reconnect(socket);
  }

  /** @param {WebSocket} socket */
  #reconnect(socket) {
    if (socket !== this.#socket) return;
    this.#socket = null;
    this.#listener.onLost(this.#isConnected);
    this.#isConnected = false;
    this.#retry = setTimeout(() => this.#connect(), this.#backoff.next());
  }

  /**
   * @param {WebSocket} socket
   * @param {FeedEvent} message
   */
  #receive(socket, message) {
    if (socket !== this.#socket) return;
    if (message.type === "connected") this.#subscribe(socket, message);
    else if (message.type === "error") this.#onError(message);
    else if (message.type !== "pong") this.#tell(message);
  }

  async #subscribe(socket, { seq }) {
    try {
      const past = await this.#listener.onConnected(seq, this.#seq === null);
      past.forEach((event) => this.#tell(event));
    } catch {
      socket.close(); // the next connection tries again
      return;
    }
    this.#seq ??= seq; // null while the service itself knows of none
    this.#backoff.reset();
    this.#isConnected = true;
    this.#send(socket, {
      type: "subscribe",
      events: may("monitor") ? [...SUBSCRIPTION, ...MONITOR_SUBSCRIPTION] : SUBSCRIPTION,
      ...(this.#seq === null ? {} : { since: this.#seq }),
    });
  }

  /** @param {FeedEvent} event */
  #tell(event) {
    if (isLogged(event)) {
      if (event.seq <= (this.#seq ?? 0)) return;
      this.#seq = event.seq;
    }
    this.#listener.onEvent(event);
  }

  /** We were too slow, or away for too long: go on from where the service says. */
  #onError({ data }) {
    if (data.error !== "resync") return;
    this.#seq = Math.max(this.#seq ?? 0, data.details.since);
    this.#listener.onGap();
  }

  #checkLife() {
    const socket = this.#socket;
    if (!socket) return;
    const silence = performance.now() - this.#heardAt;
    if (silence > LOST_AFTER_MS) {
      socket.close();
      this.#reconnect(socket); // its own close event may wait for the other side's
    } else if (silence > PING_AFTER_MS) this.#send(socket, { type: "ping" });
  }

  #hurry() {
    if (this.#socket) this.#checkLife();
    else this.#connect();
  }

  #send(socket, message) {
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  }
}
