/* Recommendations with their reasons, of one release or of two side by side. */

import { bar } from "./charts.js";
import { element } from "./dom.js";
import { address } from "./location.js";

const POPULAR = "these are the items that are popular now.";

// Why an answer is not the usual one. The first three are still computed for this user.
const FALLBACKS = {
  last_good: "The online store failed, so these use the last row it gave for this user.",
  stale_features: "This user's features are older than they should be: what the user did since is missing.",
  recent_items_only: "This user has no features, so these use the recent items alone.",
  unknown_user: `The online store does not know this user, so ${POPULAR}`,
  store_timeout: `The online store did not answer in time, so ${POPULAR}`,
  store_error: `The online store failed, so ${POPULAR}`,
  store_empty: `The online store was emptied, so ${POPULAR}`,
  no_model: `This release has no model, so ${POPULAR}`,
  no_history: `None of this user's items is in the release, so ${POPULAR}`,
};

/** The items of one answer. `moves` compares each with another answer. */
export function recommendationList(answer, moves = null) {
  if (answer.items.length === 0) return element("p", { class: "notice" }, "The release has no other items to recommend.");
  const entries = answer.items.map((each) => entry(each, moves?.get(each.item_id)));
  return element("ol", { class: "recommendations" }, ...entries);
}

function entry(each, move) {
  const badges = lately(each.fresh);
  return element(
    "li",
    { "data-item": each.item_id },
    element(
      "p",
      { class: "headline" },
      element("a", { href: address({ item: each.item_id }) }, each.title),
      move && element("span", { class: `move ${move.kind}` }, move.text),
    ),
    badges.length > 0 && element("p", { class: "badges" }, ...badges),
    why(each, badges.length > 0),
  );
}

/** A badge for each reason that rests on what was taken lately. */
function lately({ takers_7d: takers, votes }) {
  const texts = [
    votes !== null && "people with similar recent choices took this in the last days",
    takers !== null && `taken often this week: ${takers} people`,
  ];
  return texts.filter(Boolean).map((text) => element("span", { class: "badge" }, text));
}

/** The items that the reason names, each with its similarity; without any the reason as text, unless badges say it. */
function why(each, hasBadges) {
  if (each.evidence.length === 0) return hasBadges ? null : element("p", { class: "reason" }, each.reason);
  return element("ul", { class: "evidence", "aria-label": each.reason }, ...each.evidence.map(reason));
}

function reason(evidence) {
  return element(
    "li",
    {},
    element(
      "span",
      { class: "named" },
      element("a", { href: address({ item: evidence.item_id }), "data-item": evidence.item_id }, evidence.title),
      evidence.is_neighbour && [" ", element("span", { class: "badge" }, "nearest neighbour")],
      evidence.shared_categories.map((each) => [" ", element("span", { class: "badge" }, each)]),
    ),
    bar(evidence.similarity),
    element("span", { class: "numbers" }, `similarity ${evidence.similarity.toFixed(2)}`),
  );
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
