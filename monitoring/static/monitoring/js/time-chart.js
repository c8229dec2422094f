/** A plot over time, in the colors of the page. */

import uPlot from "../uplot/uPlot.esm.js";
import { element } from "./element.js";

const HEIGHT = 170;
const AXIS = {
  stroke: () => color("--muted"),
  grid: { stroke: () => color("--grid"), width: 1 },
  ticks: { show: false },
  font: "11px system-ui",
};

/** @type {Set<TimeChart>} */
const all = new Set();

/** Draws all of them again: the colors have changed. Those that left the page are forgotten. */
export function redrawCharts() {
  for (const chart of all) {
    if (chart.isOnPage) chart.redraw();
    else all.delete(chart);
  }
}

/**
 * @typedef {{label: string, color: string, kind?: "area" | "line" | "points"}} Series
 * @typedef {object} Spec
 * @property {string} name
 * @property {Series[]} series
 * @property {(value: number) => string} format
 * @property {(value: number) => string} [tick] a shorter format, for the axis
 * @property {number} [top] where the axis ends at least
 * @property {boolean} [isLog]
 * @property {string} empty what to say when there is nothing to draw
 */

export class TimeChart {
  #parent;
  #plot;
  #empty;
  #spec;

  /**
   * @param {HTMLElement} parent
   * @param {Spec} spec
   */
  constructor(parent, spec) {
    this.#parent = parent;
    this.#spec = spec;
    this.#plot = new uPlot(
      options(spec, parent.clientWidth),
      [[], ...spec.series.map(() => [])],
      parent,
    );
    // By the property and not by its color of this moment: it follows the theme.
    parent.querySelectorAll(".u-series + .u-series .u-marker").forEach((marker, index) => {
      marker.style.color = `var(${spec.series[index].color})`;
    });
    this.#empty = element("p", { class: "empty" }, spec.empty);
    parent.append(this.#empty);
    parent.setAttribute("role", "img");
    parent.setAttribute("aria-label", spec.name);
    new ResizeObserver(() => this.#fit()).observe(parent);
    all.add(this);
  }

  /**
   * @param {number[]} times in seconds
   * @param {(number | null)[][]} values of each series
   * @param {[number, number]} range of the time
   * @param {string} summary the same in words
   */
  show(times, values, [min, max], summary) {
    this.#plot.batch(() => {
      this.#plot.setData([times, ...values], false);
      this.#plot.setScale("x", { min, max });
    });
    this.#empty.hidden = values.some((row) => row.some((value) => value !== null && value > 0));
    if (this.#plot.cursor.idx === null && times.length)
      this.#plot.setLegend({ idx: times.length - 1 });
    this.#parent.setAttribute("aria-label", `${this.#spec.name}: ${summary}`);
  }

  get isOnPage() {
    return this.#parent.isConnected;
  }

  redraw() {
    this.#plot.redraw(false);
  }

  #fit() {
    const width = Math.floor(this.#parent.clientWidth);
    if (width && width !== this.#plot.width) this.#plot.setSize({ width, height: HEIGHT });
  }
}

function options({ series, format, tick, top, isLog }, width) {
  const values = (_, splits) =>
    splits.map((value) => (value === null ? "" : (tick ?? format)(value)));
  return {
    width: Math.max(200, width),
    height: HEIGHT,
    padding: [8, 8, 0, 0],
    cursor: { y: false, drag: { x: false, y: false } },
    scales: {
      x: { time: true },
      y: isLog
        ? { distr: 3, range: logRange }
        : { range: (_, __, max) => [0, Math.max(top ?? 1, max * 1.1)] },
    },
    legend: { markers: { width: 0, fill: () => "currentColor" } },
    axes: [
      {
        ...AXIS,
        size: 26,
        space: 70,
        values: (_, splits) =>
          splits.map((second) => new Date(second * 1000).toLocaleTimeString("en-GB")),
      },
      {
        ...AXIS,
        size: 58,
        space: 28,
        values,
        ...(isLog ? { splits: powersOfTen, filter: (_, splits) => splits } : {}),
      },
    ],
    series: [{ label: "Time" }, ...series.map((each) => line(each, format))],
  };
}

function line({ label, color: name, kind = "line" }, format) {
  const stroke = () => color(name);
  const shape = {
    area: {
      fill: () => `${color(name).replace("rgb", "rgba").replace(")", ", 0.16)")}`,
      width: 1.5,
      points: { show: false },
    },
    line: { width: 1.5, points: { show: false } },
    points: { paths: () => null, points: { show: true, size: 6, width: 0, fill: stroke } },
  }[kind];
  return {
    label,
    stroke,
    spanGaps: true,
    value: (_, value) => (value === null || value === undefined ? "–" : format(value)),
    ...shape,
  };
}

/** Whole powers of ten around the values. */
function logRange(_, min, max) {
  if (min === null || max === null) return [10, 1000];
  return [10 ** Math.floor(Math.log10(min)), 10 ** Math.ceil(Math.log10(Math.max(max, min * 10)))];
}

function powersOfTen(_, __, min, max) {
  const first = Math.round(Math.log10(min));
  const number = Math.round(Math.log10(max)) - first + 1;
  return Array.from({ length: number }, (__, index) => 10 ** (first + index));
}

const probe = document.createElement("span");
probe.hidden = true;

/** What a custom property comes to in the present theme, as rgb(). */
function color(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}
