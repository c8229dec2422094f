/** Elements. Text always becomes text nodes: nothing that the service says can turn into markup. */

/**
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes] `onclick` and the like are listeners; false and null
 *   leave one out
 * @param {...(Node | string | number | null | undefined)} children
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function")
      made.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else if (value !== false && value !== null && value !== undefined)
      made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(
    ...children
      .filter((child) => child !== null && child !== undefined)
      .map((child) => (child instanceof Node ? child : String(child))),
  );
  return made;
}

/**
 * @param {Record<string, Node | string | number | null>} values by their names
 * @returns {HTMLElement}
 */
export function figures(values) {
  const pairs = Object.entries(values).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value)),
  );
  return element("dl", { class: "figures" }, ...pairs);
}

/**
 * @param {string} id
 * @returns {any} the element; the template has it
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`The page has no #${id}.`);
  return found;
}

/**
 * Touches the page only where something has changed.
 * @param {Element} node
 * @param {string | number} text
 */
export function setText(node, text) {
  if (node.textContent !== String(text)) node.textContent = String(text);
}

/**
 * @param {HTMLElement} node
 * @param {string} state good, busy, warn, bad or nothing of these
 * @param {string} text
 */
export function setState(node, state, text) {
  if (node.dataset.state !== state) node.dataset.state = state;
  setText(node, text);
}
