/** What the page's address remembers, in its fragment: `#task=…` and `#report=…`. */

const listeners = new Map();

/** @param {string} name */
export function remembered(name) {
  return new URLSearchParams(location.hash.slice(1)).get(name);
}

/**
 * @param {string} name
 * @param {string | null} value null forgets it
 */
export function remember(name, value) {
  const all = new URLSearchParams(location.hash.slice(1));
  if (value === null) all.delete(name);
  else all.set(name, value);
  history.replaceState(null, "", all.size ? `#${all}` : location.pathname + location.search);
}

/**
 * @param {string} name
 * @param {(value: string | null) => void} listener called when a link or the address bar has changed it
 */
export function onRemembered(name, listener) {
  listeners.set(name, listener);
}

addEventListener("hashchange", () =>
  listeners.forEach((listener, name) => listener(remembered(name))),
);
