/** Calls of the REST API. */

export const BASE = "/api/v1";
const TIMEOUT_MS = 10_000;

/** What the API refuses, or that it does not answer. `details` names the fields that are wrong. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, details?: Record<string, any> | null}} [more] status 0: no answer came
   */
  constructor(message, { status = 0, details = null } = {}) {
    super(message);
    this.status = status;
    this.details = details ?? {};
  }
}

/**
 * @param {string} path below /api/v1, or one of /v1
 * @returns {Promise<any>}
 */
export function get(path) {
  return call("GET", path);
}

/**
 * @param {string} path
 * @param {unknown} [body]
 * @param {number} [timeoutMs]
 * @returns {Promise<any>}
 */
export function post(path, body, timeoutMs) {
  return call("POST", path, body, timeoutMs);
}

/**
 * @param {string} method
 * @param {string} path
 * @param {unknown} [body]
 * @param {number} [timeoutMs]
 * @param {number[]} [statuses] those that are an answer although they are no success
 */
export async function call(method, path, body, timeoutMs = TIMEOUT_MS, statuses = []) {
  const response = await answerOf(method, path, body, timeoutMs);
  const answer = await response.json().catch(() => null);
  if (response.status === 401) signIn();
  if (response.ok || statuses.includes(response.status)) return answer;
  const message =
    answer?.message ??
    answer?.error?.message ??
    `The service answered ${response.status} ${response.statusText}.`;
  throw new ApiError(message, { status: response.status, details: answer?.details });
}

/** Ends the session of whoever is signed in. */
export async function signOut() {
  await fetch("/logout", { method: "POST", headers: csrfHeader(), redirect: "manual" });
  signIn();
}

/** Leaves the page, and comes back to it as somebody. */
function signIn() {
  location.assign(`/login?next=${encodeURIComponent(location.pathname + location.hash)}`);
}

/** Proves that a change comes from a page of ours; the cookie is there for whoever is signed in. */
function csrfHeader() {
  const token = /(?:^|; )csrftoken=([^;]+)/.exec(document.cookie)?.[1];
  return token ? { "X-CSRFToken": token } : {};
}

async function answerOf(method, path, body, timeoutMs) {
  try {
    return await fetch(path.startsWith("/v1/") ? path : BASE + path, {
      method,
      headers: {
        Accept: "application/json",
        ...(method === "GET" ? {} : csrfHeader()),
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(timeoutMs),
      cache: "no-store",
    });
  } catch {
    throw new ApiError("The service does not answer: check that it runs, then try again.");
  }
}
