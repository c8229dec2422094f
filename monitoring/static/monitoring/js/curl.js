/** A request as a command. */

import { BASE } from "./api.js";
import { needsKey } from "./who.js";

/**
 * @param {Record<string, unknown>} body of POST /tasks
 * @returns {string} for a POSIX shell, whose variable SOPLLM_KEY has the key where one is needed
 */
export function curlFor(body) {
  const parts = [
    `curl -X POST ${quoted(`${location.origin}${BASE}/tasks`)}`,
    ...(needsKey() ? ['-H "Authorization: Bearer $SOPLLM_KEY"'] : []),
    "-H 'Content-Type: application/json'",
    `-d ${quoted(JSON.stringify(body, null, 2))}`,
  ];
  return parts.join(" \\\n  ");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
