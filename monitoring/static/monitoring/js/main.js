/** The page: what the feed and the API tell goes to the panels. */

import { hear } from "./answer.js";
import { call, get } from "./api.js";
import { readBatches } from "./batches.js";
import { showHealth, showNoHealth } from "./components.js";
import { byId, setState } from "./element.js";
import { addEvent, startEventLog } from "./event-log.js";
import { Feed, isLogged } from "./feed.js";
import { onNextFrame } from "./frame.js";
import { showGpus, showResources } from "./gpus.js";
import { readModels, refreshModels, showDownload } from "./models.js";
import { startPlayground } from "./playground.js";
import { showQueues } from "./queues.js";
import { startReports } from "./report.js";
import { addLogLine, startServiceLog } from "./service-log.js";
import { measure, showSpeed, showStats } from "./speed.js";
import { TaskList } from "./task-list.js";
import { showTasks } from "./task-panels.js";
import { startThemeSwitch } from "./theme-switch.js";
import { redrawCharts } from "./time-chart.js";
import { may, startWho } from "./who.js";

const PAST_EVENTS = 200;
const PAST_LOG_LINES = 100;
const MAX_TASKS = 100;
const HEALTH_EVERY_MS = 5000;
const STATS_EVERY_MS = 15_000;
const BATCHES_EVERY_MS = 2000;
// Ten times a second is smooth enough for tables, and leaves time for everything else.
const REST_MS = 100;
const UNHEALTHY_STATUS = 503;

const tasks = new TaskList();
const drawTasks = onNextFrame(() => showTasks(tasks), REST_MS);
const drawSpeed = onNextFrame(showSpeed);

const feed = new Feed({ onConnected, onLost, onEvent, onGap: readState });

/**
 * @param {number | null} seq of the last event
 * @param {boolean} isFirst
 */
async function onConnected(seq, isFirst) {
  readState();
  const past = isFirst && seq !== null ? await eventsBefore(seq) : [];
  setState(byId("connection"), "good", "Live");
  return past;
}

async function eventsBefore(seq) {
  const { events } = await get(
    `/monitor/events?after=${Math.max(0, seq - PAST_EVENTS)}&limit=${PAST_EVENTS}`,
  );
  return events;
}

/** @param {boolean} wasConnected */
function onLost(wasConnected) {
  setState(
    byId("connection"),
    "bad",
    wasConnected ? "Connection lost, trying again" : "No connection, trying again",
  );
  if (wasConnected) readHealth();
  else readState(); // figures that stand still are better than none
}

/** @param {import("./feed.js").FeedEvent} event */
function onEvent(event) {
  const { type, data } = event;
  if (isLogged(event)) addEvent(event);
  if (type.startsWith("task.")) {
    tasks.apply(event);
    measure(event);
    hear(event);
    drawTasks();
  } else if (type === "model.download_progress") read(() => showDownload(data));
  else if (type.startsWith("model.")) read(readModels);
  else if (type === "queue_stats") showQueues(data);
  else if (type === "gpu_stats") showGpus(data);
  else if (type === "log") addLogLine(data);
}

/** Everything as it is now: at the start, and whenever events may have been missed. */
function readState() {
  read(readTasks);
  read(readModels);
  read(readBatches);
  read(async () => showQueues(await get("/monitor/queue")));
  if (may("monitor")) {
    read(async () => showGpus(await get("/monitor/gpu")));
    read(readLog);
  }
  readHealth();
  readStats();
}

async function readTasks() {
  const askedAt = performance.now();
  const paths = [`/tasks?limit=${MAX_TASKS}`, `/tasks?status=processing&limit=${MAX_TASKS}`];
  const [newest, running] = await Promise.all(paths.map(get));
  const listed = new Set(newest.results.map((task) => task.task_id));
  tasks.merge(
    [...newest.results, ...running.results.filter((task) => !listed.has(task.task_id))],
    askedAt,
  );
  drawTasks();
}

async function readLog() {
  const { results } = await get(`/monitor/logs?limit=${PAST_LOG_LINES}`);
  results.toReversed().forEach(addLogLine);
}

async function readHealth() {
  if (!may("monitor")) return;
  try {
    const health = await call("GET", "/monitor/health", undefined, undefined, [UNHEALTHY_STATUS]);
    showHealth(health);
    showResources(health.resources ?? {});
  } catch {
    showNoHealth();
  }
}

function readStats() {
  if (may("monitor")) read(async () => showStats(await get("/monitor/stats?days=1")));
}

/** What cannot be read now stays as it was: the line at the top tells of the trouble. */
function read(/** @type {() => Promise<void>} */ part) {
  part().catch(() => {});
}

function whileVisible(/** @type {() => void} */ act) {
  return () => document.visibilityState === "visible" && act();
}

/** Tries again while the service does not say who looks at the page. */
async function start() {
  try {
    await startWho();
  } catch (error) {
    if (error.status !== 401) setTimeout(start, HEALTH_EVERY_MS);
    return;
  }
  startReports();
  startEventLog();
  startServiceLog();
  startPlayground();
  const isHere = ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname);
  byId("elsewhere").hidden = isHere;
  feed.start();
  setInterval(whileVisible(drawTasks), 500);
  setInterval(whileVisible(drawSpeed), 1000);
  setInterval(whileVisible(readHealth), HEALTH_EVERY_MS);
  setInterval(whileVisible(readStats), STATS_EVERY_MS);
  setInterval(
    whileVisible(() => read(readBatches)),
    BATCHES_EVERY_MS,
  );
  setInterval(
    whileVisible(() => read(refreshModels)),
    HEALTH_EVERY_MS,
  );
  drawSpeed();
}

startThemeSwitch(redrawCharts);
start();
