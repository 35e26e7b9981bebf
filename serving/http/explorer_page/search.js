/* Search results: the items whose descriptions are nearest to the query. */

import { search } from "./api.js";
import { element, section, title } from "./dom.js";
import { itemList } from "./items.js";

const NUM_ITEMS = 20;

export async function searchView(state, signal) {
  const found = await search(signal, state.q, NUM_ITEMS);
  const close = found.items.filter((each) => each.is_close);
  const nothing = `Nothing very close to “${state.q}”`;
  return {
    status: found.nothing_close ? nothing : `${close.length} items about “${state.q}”`,
    release: found.release,
    nodes: [
      title(`Items about “${state.q}”`),
      section(
        "found",
        "Nearest first",
        notice(found),
        found.nothing_close && element("p", { class: "notice" }, `${nothing}; the nearest:`),
        itemList(found.nothing_close ? found.items : close, facts),
      ),
    ],
  };
}

function facts(item) {
  const badges = item.categories.map((category) => [" ", element("span", { class: "badge" }, category)]);
  return element("p", { class: "hint facts" }, item.snippet, badges);
}

const WHY_IN_MEMORY = {
  milvus_timeout: "The Milvus server did not answer in time",
  milvus_error: "The Milvus server failed",
  milvus_incomplete: "Milvus holds too few texts of this release",
};

function notice(found) {
  if (found.fallback === null) return null;
  const text = `${WHY_IN_MEMORY[found.fallback]}, so the release was searched in memory. `;
  return element("p", { class: "notice fallback" }, text, element("code", {}, found.fallback));
}
