/* Recommendations with their reasons, of one release or of two side by side. */

import { bar } from "./charts.js";
import { element } from "./dom.js";
import { address } from "./location.js";

const POPULAR = "these are the items that most users have.";

// Why an answer is not the usual one. The first two are still computed for this user.
const FALLBACKS = {
  last_good: "The online store failed, so these use the last row it gave for this user.",
  recent_items_only: "This user has no features, so these use the recent items alone.",
  unknown_user: `The online store does not know this user, so ${POPULAR}`,
  stale_features: `This user's features are too old, so ${POPULAR}`,
  store_timeout: `The online store did not answer in time, so ${POPULAR}`,
  store_error: `The online store failed, so ${POPULAR}`,
  store_empty: `The online store was emptied, so ${POPULAR}`,
  no_model: `This release has no model, so ${POPULAR}`,
  no_history: `None of this user's items is in the release, so ${POPULAR}`,
};

/** The items of one answer. `moves` compares each with another answer. */
export function recommendationList(answer, moves = null) {
  if (answer.items.length === 0) return element("p", { class: "notice" }, "The release has no other items to recommend.");
  const largest = Math.max(...answer.items.flatMap((each) => each.evidence.map((evidence) => evidence.weight)), 0);
  const entries = answer.items.map((each) => entry(each, largest, moves?.get(each.item_id)));
  return element("ol", { class: "recommendations" }, ...entries);
}

function entry(each, largest, move) {
  return element(
    "li",
    { "data-item": each.item_id },
    element(
      "p",
      { class: "headline" },
      element("a", { href: address({ item: each.item_id }) }, each.title),
      move && element("span", { class: `move ${move.kind}` }, move.text),
    ),
    why(each, largest),
  );
}

/** The items that the reason names, each with its weight; the reason as text if it names none. */
function why(each, largest) {
  if (each.evidence.length === 0) return element("p", { class: "reason" }, each.reason);
  const entries = each.evidence.map((evidence) => reason(evidence, largest));
  return element("ul", { class: "evidence", "aria-label": each.reason }, ...entries);
}

/** Bars are relative to the largest attention in this list, because attention has no upper bound. */
function reason(evidence, largest) {
  return element(
    "li",
    {},
    element(
      "span",
      { class: "named" },
      element("a", { href: address({ item: evidence.item_id }), "data-item": evidence.item_id }, evidence.title),
      evidence.is_neighbour && [" ", element("span", { class: "badge" }, "nearest neighbour")],
    ),
    bar(largest > 0 ? evidence.weight / largest : 0),
    element("span", { class: "numbers" }, numbers(evidence)),
  );
}

function numbers(evidence) {
  return `attention ${evidence.weight.toPrecision(2)}, similarity ${evidence.similarity.toFixed(2)}`;
}

/** The notice above a list that is not the usual one; null above a usual one. */
export function fallbackNotice(answer) {
  if (answer.fallback === null) return null;
  const said = FALLBACKS[answer.fallback] ?? "This is not the usual answer.";
  const names = [answer.fallback, answer.store_problem].filter(Boolean);
  return element(
    "p",
    { class: "notice fallback" },
    said,
    ...[...new Set(names)].flatMap((name) => [" ", element("code", {}, name)]),
  );
}

/** How the rank of each item changed: item id -> {kind: new, up, down or same, text}. */
export function compare(before, after) {
  const rankBefore = new Map(before.items.map((each, index) => [each.item_id, index]));
  const move = (id, rank) => {
    if (!rankBefore.has(id)) return { kind: "new", text: "new" };
    const by = rankBefore.get(id) - rank;
    if (by === 0) return { kind: "same", text: "= same place" };
    return by > 0 ? { kind: "up", text: `▲ up ${by}` } : { kind: "down", text: `▼ down ${-by}` };
  };
  return new Map(after.items.map((each, rank) => [each.item_id, move(each.item_id, rank)]));
}

/** The items of `before` that are not in `after`: item id -> {kind: gone, text}. */
export function gone(before, after) {
  const still = new Set(after.items.map((each) => each.item_id));
  const left = before.items.filter((each) => !still.has(each.item_id));
  return new Map(left.map((each) => [each.item_id, { kind: "gone", text: "gone" }]));
}

/** The comparison as text for screen readers: "2 new, 3 up, 1 down, 4 same, 2 gone". */
export function differences(before, after) {
  const kinds = [...compare(before, after).values(), ...gone(before, after).values()].map((move) => move.kind);
  return ["new", "up", "down", "same", "gone"]
    .map((kind) => [kinds.filter((each) => each === kind).length, kind])
    .filter(([count]) => count > 0)
    .map(([count, kind]) => `${count} ${kind}`)
    .join(", ");
}
