/** The panel of the GPUs; without one, of the machine's memory. */

import { byId, element, setText } from "./element.js";
import { count, megabytes } from "./format.js";
import { Rows } from "./rows.js";
import { TimeChart } from "./time-chart.js";

const WINDOW_SECONDS = 300;
const rows = new Rows(byId("gpus"), { key: keyOf, create });
const meters = new Rows(byId("memory"), { key: (meter) => meter.name, create: createMeter });
let hasGpu = false;

/** @param {Record<string, any>} stats the data of `gpu_stats`, and of GET /monitor/gpu */
export function showGpus({ available, gpus }) {
  hasGpu = Boolean(available) && gpus.length > 0;
  byId("gpu-none").hidden = hasGpu;
  rows.show(hasGpu ? gpus : []);
  if (!hasGpu) return;
  const sum = (field) => gpus.reduce((total, gpu) => total + (gpu[field] ?? 0), 0);
  showMemoryTile("GPU memory in use", sum("used_mb"), sum("total_mb"));
}

/** @param {Record<string, any>} resources of GET /monitor/health */
export function showResources(resources) {
  const shown = [
    { name: "Memory", used: resources.memory_used_mb, total: resources.memory_total_mb },
    { name: "Disk", used: resources.disk_used_mb, total: resources.disk_total_mb },
  ].filter(({ total }) => total);
  meters.show(shown);
  const [memory] = shown;
  if (!hasGpu && memory) showMemoryTile("Memory in use", memory.used, memory.total);
}

function showMemoryTile(title, used, total) {
  setText(byId("tile-memory-title"), title);
  byId("tile-memory").replaceChildren(
    megabytes(used),
    " ",
    element("small", {}, `of ${megabytes(total)}`),
  );
}

function keyOf(gpu) {
  return `${gpu.node}/${gpu.index}`;
}

function create(first) {
  const about = element("small");
  const now = element("p", { class: "muted" });
  const parent = element("div", { class: "chart" });
  const node = element("div", { class: "gpu" }, element("h3", {}, first.name, about), now, parent);
  /** @type {{at: number, used: number, busy: number}[]} */
  let history = [];
  /** @type {TimeChart | undefined} */
  let chart;
  const update = (gpu) => {
    setText(
      about,
      `GPU ${gpu.index} on ${gpu.node}, driver ${gpu.driver_version}, CUDA ${gpu.cuda_version}`,
    );
    setText(now, inWords(gpu));
    const at = Date.now() / 1000;
    history = [
      ...history.filter((reading) => reading.at > at - WINDOW_SECONDS),
      { at, used: gpu.used_percent, busy: gpu.utilization_percent },
    ];
    chart ??= percentChart(parent, first);
    const values = [history.map(({ used }) => used), history.map(({ busy }) => busy)];
    chart.show(
      history.map((reading) => reading.at),
      values,
      [at - WINDOW_SECONDS, at],
      inWords(gpu),
    );
  };
  return { node, update };
}

function percentChart(parent, gpu) {
  return new TimeChart(parent, {
    name: `${gpu.name}: memory and utilization`,
    series: [
      { label: "Memory", color: "--series-1", kind: "area" },
      { label: "Utilization", color: "--series-3" },
    ],
    format: (value) => `${Math.round(value)} %`,
    top: 100,
    empty: "No readings yet.",
  });
}

function inWords(gpu) {
  const parts = [
    `${megabytes(gpu.used_mb)} of ${megabytes(gpu.total_mb)} in use`,
    gpu.utilization_percent === null ? null : `${count(gpu.utilization_percent)} % busy`,
    gpu.temperature_c === null ? null : `${count(gpu.temperature_c)} °C`,
    gpu.power_w === null ? null : `${count(gpu.power_w)} W`,
    gpu.is_locked ? "working" : "free",
    gpu.loaded_models?.length ? gpu.loaded_models.join(", ") : "no model loaded",
  ];
  return parts.filter(Boolean).join(", ");
}

function createMeter({ name }) {
  const figures = element("span", { class: "muted" });
  const meter = /** @type {HTMLMeterElement} */ (
    element("meter", { min: 0, max: 1, high: 0.9, optimum: 0, "aria-label": `${name} in use` })
  );
  const node = element("div", { class: "meter" }, element("span", {}, name), figures, meter);
  const update = ({ used, total }) => {
    setText(figures, `${megabytes(used)} of ${megabytes(total)}`);
    meter.value = used / total;
  };
  return { node, update };
}
