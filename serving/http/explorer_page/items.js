/* A list of items with their similarities. */

import { bar } from "./charts.js";
import { element } from "./dom.js";
import { address } from "./location.js";

/** `items`: [{item_id, title, similarity}], nearest first; `more(item)`: what else a line shows, if anything. */
export function itemList(items, more = () => null) {
  if (items.length === 0) return element("p", { class: "hint" }, "None.");
  const entry = (each) =>
    element(
      "li",
      {},
      element("a", { href: address({ item: each.item_id }) }, each.title),
      bar(each.similarity),
      element("span", { class: "numbers" }, each.similarity.toFixed(2)),
      more(each),
    );
  return element("ol", { class: "near" }, ...items.map(entry));
}
