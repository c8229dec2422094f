/** Numbers, times and names as people read them. */

const NONE = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** @param {number | null | undefined} value */
export function count(value) {
  return value === null || value === undefined ? NONE : whole.format(value);
}

/** @param {number | null | undefined} value tokens per second and the like */
export function rate(value) {
  if (value === null || value === undefined) return NONE;
  return value < 100 ? short.format(value) : whole.format(value);
}

/** @param {number | null | undefined} ms */
export function duration(ms) {
  if (ms === null || ms === undefined) return NONE;
  if (ms < 1) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400)
    return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

/** @param {number | null | undefined} value megabytes of 1024 * 1024 bytes */
export function megabytes(value) {
  if (value === null || value === undefined) return NONE;
  return value < 1024 ? `${whole.format(value)} MB` : `${short.format(value / 1024)} GB`;
}

/** @param {number | null | undefined} value */
export function bytes(value) {
  return value === null || value === undefined ? NONE : megabytes(value / 1024 / 1024);
}

/** @param {number} value */
export function joules(value) {
  return value < 1000 ? `${short.format(value)} J` : `${short.format(value / 1000)} kJ`;
}

/** @param {number} value small sums as well */
export function dollars(value) {
  return `$${value.toFixed(value < 0.01 ? 6 : 2)}`;
}

/** @param {string | null | undefined} iso a time of day, as the clock here shows it */
export function clock(iso) {
  const moment = new Date(iso ?? "");
  return Number.isNaN(moment.getTime()) ? NONE : moment.toLocaleTimeString("en-GB");
}

/** @param {string | null | undefined} iso a day and its time */
export function moment(iso) {
  const when = new Date(iso ?? "");
  return Number.isNaN(when.getTime()) ? NONE : when.toLocaleString("sv-SE");
}

/** @param {string} taskId */
export function shortId(taskId) {
  return taskId.replace(/^task_/, "").slice(0, 8);
}
