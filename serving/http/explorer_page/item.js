/* One item: its description and similar items. */

import { item, similarItems } from "./api.js";
import { element, section, title } from "./dom.js";
import { itemList } from "./items.js";

const NUM_ITEMS = 10;

export async function itemView(state, signal) {
  const [found, near] = await Promise.all([item(signal, state.item), similarItems(signal, state.item, NUM_ITEMS)]);
  return {
    status: `Item ${found.title}, ${near.items.length} similar items`,
    release: found.release,
    nodes: [title(found.title), element("div", { class: "columns" }, about(found), similar(near.items))],
  };
}

function about(found) {
  return section(
    "profile",
    "About",
    element("blockquote", {}, found.description || "No description."),
    element(
      "p",
      { class: "badges" },
      found.source === "llm" && element("span", { class: "badge" }, "written by the language model"),
      found.source === "facts" && element("span", { class: "badge warning" }, "built from facts"),
      found.is_tail && element("span", { class: "badge" }, "few users (tail)"),
      ...found.categories.map((each) => element("span", { class: "badge" }, each)),
    ),
    element("p", {}, `${found.popularity} users have it.`),
  );
}

function similar(items) {
  return section(
    "recommended",
    "Similar items",
    element("p", { class: "hint" }, "Similarity of the descriptions"),
    itemList(items),
  );
}
