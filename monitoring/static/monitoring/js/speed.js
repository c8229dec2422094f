/** Throughput and latency: plots of the last minutes, percentiles of today. */

import { byId, element, setText } from "./element.js";
import { count, duration, rate } from "./format.js";
import { TimeChart } from "./time-chart.js";
import { TokenRate } from "./token-rate.js";

const WINDOW_SECONDS = 300;
const MAX_POINTS = 2000;
const ENDS = new Set(["task.completed", "task.failed", "task.cancelled"]);

const tokenRate = new TokenRate();
/** @type {{at: number, ttft: number | null, wait: number | null}[]} oldest first */
let ended = [];

const throughput = new TimeChart(byId("throughput"), {
  name: "Throughput",
  series: [{ label: "Tokens/s", color: "--series-1", kind: "area" }],
  format: rate,
  top: 10,
  empty: "No tokens in the last 5 minutes.",
});
const latency = new TimeChart(byId("latency"), {
  name: "Latency",
  series: [
    { label: "First token", color: "--series-1", kind: "points" },
    { label: "Queue wait", color: "--series-2", kind: "points" },
  ],
  format: duration,
  tick: (ms) => (ms < 1000 ? `${ms} ms` : `${ms / 1000} s`),
  isLog: true,
  empty: "No task has ended in the last 5 minutes.",
});

/** @param {import("./feed.js").FeedEvent} event a task's */
export function measure(event) {
  tokenRate.add(event);
  if (!ENDS.has(event.type)) return;
  const { ttft_ms: ttft, queue_wait_ms: wait } = event.data;
  ended.push({ at: Date.parse(event.timestamp) / 1000, ttft, wait });
  if (ended.length > MAX_POINTS) ended = ended.slice(-MAX_POINTS / 2);
}

/** Moves the plots on: time goes by also when nothing happens. */
export function showSpeed() {
  const now = Date.now() / 1000;
  const range = /** @type {[number, number]} */ ([now - WINDOW_SECONDS, now]);
  const current = tokenRate.current(now);
  setText(byId("tile-rate"), rate(current));
  const [seconds, tokens] = tokenRate.series(now, WINDOW_SECONDS);
  throughput.show(seconds, [tokens], range, `${rate(current)} tokens per second at the moment`);
  showLatency(range);
}

function showLatency(range) {
  const recent = ended.filter(({ at }) => at >= range[0]).sort((a, b) => a.at - b.at);
  const times = recent.map(({ at }) => at);
  const values = [
    recent.map(({ ttft }) => positive(ttft)),
    recent.map(({ wait }) => positive(wait)),
  ];
  latency.show(times, values, range, `${recent.length} tasks have ended`);
}

/** A logarithmic axis has no zero. */
function positive(ms) {
  return ms === null ? null : Math.max(1, ms);
}

/** @param {Record<string, any>} stats today's, of GET /monitor/stats */
export function showStats(stats) {
  setText(byId("tile-ttft"), duration(stats.ttft_ms.p50));
  setText(byId("tile-wait"), duration(stats.queue_wait_ms.p95));
  setText(byId("tile-completed"), count(stats.tasks.completed));
  const models = Object.entries(stats.models);
  byId("percentiles-empty").hidden = models.length > 0;
  byId("percentiles").replaceChildren(...models.map(percentileRow));
}

function percentileRow([name, figures]) {
  const both = (values) => `${duration(values.p50)} / ${duration(values.p95)}`;
  const texts = [
    count(figures.tasks.total),
    both(figures.ttft_ms),
    both(figures.queue_wait_ms),
    rate(figures.tokens_per_second.p50),
  ];
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, name),
    ...texts.map((text) => element("td", { class: "number" }, text)),
  );
}
