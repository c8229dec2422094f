/** Who looks at the page, and what of it is for them. */

import { get, signOut } from "./api.js";
import { byId, setText } from "./element.js";

/** @type {Set<string>} */
let scopes = new Set();
let isLocal = false;

/** Shows who it is, and hides what they may not see; without access the page gives way to the sign-in. */
export async function startWho() {
  const me = await get("/keys/me");
  scopes = new Set(me.scopes);
  for (const node of document.querySelectorAll("[data-scope]"))
    /** @type {HTMLElement} */ (node).hidden = !may(node.getAttribute("data-scope") ?? "");
  isLocal = me.owner === "local";
  setText(byId("who"), isLocal ? "Local access" : `Signed in as ${me.name}`);
  setText(byId("whose"), `Tasks of ${me.is_staff ? "all owners" : me.owner}`);
  byId("whose").hidden = isLocal;
  byId("sign-out").hidden = isLocal;
  byId("sign-out").addEventListener("click", signOut);
}

/** @param {string} scope */
export function may(scope) {
  return scopes.has(scope);
}

/** Whether calls from here need a key. */
export function needsKey() {
  return !isLocal;
}
