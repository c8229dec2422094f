/** The panel of the service's log. */

import { BoundedFeed, feedLine } from "./bounded-feed.js";
import { byId } from "./element.js";
import { clock } from "./format.js";

const RANKS = { INFO: 1, WARNING: 2, ERROR: 3, CRITICAL: 4 };
const STATES = { WARNING: "warn", ERROR: "bad", CRITICAL: "bad" };

const MAX_KNOWN = 1000;

const level = byId("log-level");
/** @type {Set<string>} what was shown: a line can be both read and told */
const known = new Set();
const lines = new BoundedFeed({
  list: byId("log"),
  empty: byId("log-empty"),
  pause: byId("log-pause"),
  create: ({ timestamp, level: its, process, message }) =>
    feedLine(timestamp, clock(timestamp), its, STATES[its] ?? "none", `${process}: ${message}`),
  isWanted: ({ level: its }) => (RANKS[its] ?? 1) >= RANKS[level.value],
});

/** @param {Record<string, any>} line the data of `log` */
export function addLogLine(line) {
  const key = [line.timestamp, line.process, line.logger, line.message].join(" ");
  if (known.has(key)) return;
  known.add(key);
  if (known.size > MAX_KNOWN) known.delete(known.values().next().value);
  lines.add(line);
}

/** Lets the user choose the level. */
export function startServiceLog() {
  level.addEventListener("change", () => lines.filter());
}
