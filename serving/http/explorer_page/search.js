/* Search results: the items whose descriptions are nearest to the query. */

import { search } from "./api.js";
import { bar } from "./charts.js";
import { element, section, title } from "./dom.js";
import { address } from "./location.js";

const NUM_ITEMS = 20;

export async function searchView(state, signal) {
  const found = await search(signal, state.q, NUM_ITEMS);
  const close = found.items.filter((each) => each.is_close);
  const nothing = `Nothing close to “${state.q}”`;
  return {
    status: found.nothing_close ? nothing : `${close.length} items about “${state.q}”`,
    release: found.release,
    nodes: [
      title(`Items about “${state.q}”`),
      section(
        "found",
        "Nearest first",
        notice(found),
        found.nothing_close && element("p", { class: "notice" }, `${nothing}. The nearest of all items:`),
        list(found.nothing_close ? found.items : close),
      ),
    ],
  };
}

function list(items) {
  const entry = (each) =>
    element(
      "li",
      {},
      element("a", { href: address({ item: each.item_id }) }, each.title),
      bar(each.similarity),
      element("span", { class: "numbers" }, each.similarity.toFixed(2)),
      element(
        "p",
        { class: "hint facts" },
        each.snippet,
        each.categories.map((category) => [" ", element("span", { class: "badge" }, category)]),
      ),
    );
  return element("ol", { class: "near" }, ...items.map(entry));
}

function notice(found) {
  if (found.fallback === null) return null;
  const text = "The Milvus server did not answer, so the release was searched in memory. ";
  return element("p", { class: "notice fallback" }, text, element("code", {}, found.fallback));
}
