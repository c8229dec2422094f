/** A list of elements that follows a list of items: one element a key, kept as long as its item stays. */

/**
 * @template Item
 * @typedef {{node: HTMLElement, update: (item: Item) => void}} Row
 */

/**
 * @template Item
 */
export class Rows {
  #parent;
  #spec;
  /** @type {Map<string, Row<Item>>} */
  #rows = new Map();

  /**
   * @param {HTMLElement} parent
   * @param {{key: (item: Item) => string, create: (item: Item) => Row<Item>}} spec
   */
  constructor(parent, spec) {
    this.#parent = parent;
    this.#spec = spec;
  }

  /** @param {Item[]} items in the order to show them */
  show(items) {
    const kept = new Set(items.map(this.#spec.key));
    for (const key of this.#rows.keys()) if (!kept.has(key)) this.#remove(key);
    let next = this.#parent.firstElementChild;
    for (const item of items) {
      const row = this.#row(this.#spec.key(item), item);
      row.update(item);
      if (row.node === next) next = next.nextElementSibling;
      else this.#parent.insertBefore(row.node, next);
    }
  }

  #row(key, item) {
    const known = this.#rows.get(key);
    if (known) return known;
    const made = this.#spec.create(item);
    this.#rows.set(key, made);
    return made;
  }

  #remove(key) {
    this.#rows.get(key)?.node.remove();
    this.#rows.delete(key);
  }
}
