/* Search results: the items whose descriptions are nearest to the query. */

import { search } from "./api.js";
import { element, section, title } from "./dom.js";
import { itemList } from "./items.js";

const NUM_ITEMS = 20;

export async function searchView(state, signal) {
  const found = await search(signal, state.q, NUM_ITEMS);
  return {
    status: `${found.items.length} items about “${state.q}”`,
    release: found.release,
    nodes: [
      title(`Items about “${state.q}”`),
      section("found", "Nearest first", notice(found), itemList(found.items)),
    ],
  };
}

function notice(found) {
  if (found.fallback === null) return null;
  const text = "The Milvus server did not answer, so the release was searched in memory. ";
  return element("p", { class: "notice fallback" }, text, element("code", {}, found.fallback));
}
