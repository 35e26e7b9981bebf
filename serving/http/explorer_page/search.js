/* Items by what they are about, not by the letters of their titles. */

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
  const text = "The vector server did not answer, so the release's vectors were searched in memory. ";
  return element("p", { class: "notice fallback" }, text, element("code", {}, found.fallback));
}
