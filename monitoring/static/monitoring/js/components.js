/** The health of the service: the line at the top, and the panel of its components. */

import { byId, element, setState, setText } from "./element.js";
import { duration } from "./format.js";
import { Rows } from "./rows.js";

const WORDS = {
  healthy: ["good", "Healthy"],
  degraded: ["warn", "Degraded"],
  unhealthy: ["bad", "Unhealthy"],
};
const STATES = { up: "good", degraded: "warn", down: "bad" };

const rows = new Rows(byId("components"), { key: ([name]) => name, create });

/** @param {Record<string, any>} health of GET /monitor/health */
export function showHealth(health) {
  const [state, word] = WORDS[health.status] ?? ["busy", "Health unknown"];
  const components = Object.entries(health.components);
  const troubled = components
    .filter(([, { status }]) => status !== "up")
    .map(([name]) => name.replaceAll("_", " "));
  setState(byId("health"), state, troubled.length ? `${word}: ${troubled.join(", ")}` : word);
  setText(byId("version"), health.version);
  byId("version").title = `Up for ${duration(health.uptime_seconds * 1000)}`;
  rows.show(components);
  byId("components-empty").hidden = components.length > 0;
}

/** The service gives no answer. */
export function showNoHealth() {
  setState(byId("health"), "bad", "No answer");
}

function create([name]) {
  const state = element("span", { class: "badge" });
  const about = element("span", { class: "about" });
  const end = element("span", { class: "end" }, state);
  const node = element(
    "li",
    { "data-component": name },
    element("span", { class: "name" }, name.replaceAll("_", " ")),
    about,
    end,
  );
  const update = ([, { status, message, response_time_ms: ms }]) => {
    setState(state, STATES[status] ?? "none", status);
    setText(about, message);
    node.title = `Answered in ${duration(ms)}`;
  };
  return { node, update };
}
