/** A request as a command. */

import { BASE } from "./api.js";

/**
 * @param {Record<string, unknown>} body of POST /tasks
 * @returns {string} for a POSIX shell
 */
export function curlFor(body) {
  const parts = [
    `curl -X POST ${quoted(`${location.origin}${BASE}/tasks`)}`,
    "-H 'Content-Type: application/json'",
    `-d ${quoted(JSON.stringify(body, null, 2))}`,
  ];
  return parts.join(" \\\n  ");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
