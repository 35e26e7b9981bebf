/* One user: profile, history, similar users, and recommendations with reasons. */

import { categories, recommendations, releases, user } from "./api.js";
import { bar, timeline } from "./charts.js";
import { definitions, element, section, title } from "./dom.js";
import { age, day, moment } from "./format.js";
import { address } from "./location.js";
import { listed, optionsForm } from "./options.js";
import { compare, differences, fallbackNotice, gone, recommendationList } from "./recommendations.js";
import { settled } from "./settled.js";

const NUM_ITEMS = 10;

/** Load and lay out the view. Throws an ApiError if there is nothing to show. */
export async function userView(state, signal) {
  const [profile, answer, other, published, offered] = await Promise.all([
    settled(user(signal, state.user)),
    settled(recommendations(signal, request(state, state.release))),
    state.with ? settled(recommendations(signal, request(state, state.with))) : null,
    settled(releases(signal)),
    settled(categories(signal)),
  ]);
  if (answer.error && profile.error) throw answer.error;
  return {
    status: inWords(state, answer, other),
    release: answer.value?.release ?? profile.value?.release,
    nodes: [
      title(`User ${quoted(state.user)}`),
      profile.error?.status === 404 && correction(state),
      optionsForm(state, published.value?.releases ?? [], offered.value?.categories ?? []),
      element(
        "div",
        { class: state.with ? "columns comparing" : "columns" },
        profileCard(profile),
        other ? comparisonCard(answer, other) : recommendationCard(answer),
        ...(profile.value ? [historyCard(profile.value), neighbourCard(profile.value, state)] : []),
      ),
    ].filter(Boolean),
  };
}

function request(state, release) {
  return {
    user_id: state.user,
    k: Number(state.k ?? NUM_ITEMS),
    recent_item_ids: listed(state.recent),
    exclude_seen: state.seen !== "1",
    categories: listed(state.categories),
    release,
    is_shown: false,
  };
}

function inWords(state, answer, other) {
  if (answer.error) return `No recommendations for user ${quoted(state.user)}: ${answer.error.message}`;
  const { items, fallback } = answer.value;
  const how = [fallback && `fallback ${fallback}`, other?.value && differences(answer.value, other.value)];
  return [`${items.length} recommendations for user ${quoted(state.user)}`, ...how.filter(Boolean)].join("; ");
}

/** The id, in quotes if it begins or ends with a blank, which nobody would see. */
function quoted(id) {
  return id === id.trim() ? id : `“${id}”`;
}

/** A link to the id without the blanks around it, which copying may have added. */
function correction(state) {
  const id = state.user.trim();
  if (id === state.user || id === "") return null;
  return element("p", { class: "notice" }, "Did you mean ", element("a", { href: address({ ...state, user: id }) }, id), "?");
}

function problem(error) {
  return element("p", { class: "notice problem" }, error.message);
}

function profileCard({ value: profile, error }) {
  if (error) return section("profile", "Profile", problem(error));
  const isWritten = profile.source === "llm";
  return section(
    "profile",
    "Profile",
    element("blockquote", {}, profile.description || "No description."),
    element(
      "p",
      { class: "badges" },
      element(
        "span",
        { class: isWritten ? "badge" : "badge warning" },
        isWritten ? "written by the language model" : "built from facts",
      ),
      profile.is_stale && element("span", { class: "badge warning" }, `stale: ${age(profile.age_hours)}`),
      profile.fallback && element("span", { class: "badge warning" }, "an earlier row, because the online store failed"),
      profile.is_tail && element("span", { class: "badge" }, "few interactions (tail)"),
    ),
    !isWritten &&
      element("p", { class: "hint" }, "The language model has no accepted text for this user."),
    definitions({
      Interactions: profile.num_interactions,
      "Features of": `${profile.day}, ${age(profile.age_hours)}`,
      Computed: `${moment(profile.computed_at)} UTC`,
    }),
  );
}

function recommendationCard({ value: answer, error }) {
  if (error) return section("recommended", "Recommendations", problem(error));
  return section("recommended", "Recommendations", ...listOf(answer));
}

function listOf(answer, moves = null) {
  const unknown = answer.num_unknown_recent_items;
  return [
    fallbackNotice(answer),
    unknown > 0 && element("p", { class: "notice" }, `Recent items that are not in this release: ${unknown}.`),
    element("p", { class: "hint" }, origin(answer)),
    answer.items.some((each) => each.evidence.length > 0) &&
      element(
        "p",
        { class: "hint" },
        "Below each item: similar items of the history, first the one without which it would lose most. ",
        "Bars show similarity.",
      ),
    recommendationList(answer, moves),
  ];
}

function origin(answer) {
  const experiment = answer.experiment && `experiment ${answer.experiment}, ${answer.bucket}`;
  const votes = answer.votes_from === "moments" && "similar people found by this history";
  return [`Release ${answer.release}`, answer.model ? `model ${answer.model}` : "no model", experiment, votes]
    .filter(Boolean)
    .join("; ");
}

function comparisonCard(answer, other) {
  const [before, after] = [answer.value, other.value];
  const moves = before && after ? [gone(before, after), compare(before, after)] : [null, null];
  const column = ({ value, error }, heading, move) =>
    element("div", {}, element("h3", {}, heading), ...(error ? [problem(error)] : listOf(value, move)));
  return section(
    "recommended",
    "Recommendations of two releases",
    element(
      "div",
      { class: "side-by-side" },
      column(answer, "Before", moves[0]),
      column(other, "After", moves[1]),
    ),
  );
}

function historyCard(profile) {
  const newestFirst = [...profile.history].reverse();
  if (newestFirst.length === 0) return section("history", "History", element("p", { class: "hint" }, "No items."));
  const timed = newestFirst.filter((each) => each.at);
  const entry = (each) =>
    element(
      "li",
      { "data-item": each.item_id },
      each.title === null
        ? element("span", {}, `item ${each.item_id}, not in the release`)
        : element("a", { href: address({ item: each.item_id }) }, each.title),
      each.at && element("time", { datetime: each.at, title: `${moment(each.at)} UTC` }, day(each.at)),
    );
  return section(
    "history",
    "History",
    timed.length > 0 && timeline(timed),
    element("p", { class: "hint" }, `The last ${newestFirst.length} items, newest first`),
    element("ul", { class: "scrolls" }, ...newestFirst.map(entry)),
  );
}

function neighbourCard(profile, state) {
  if (profile.neighbours.length === 0) {
    return section("neighbours", "Similar users", element("p", { class: "hint" }, "None."));
  }
  const entry = (each) =>
    element(
      "li",
      {},
      element("a", { href: address({ ...state, user: each.user_id }) }, each.user_id),
      bar(each.similarity),
      element("span", { class: "numbers" }, each.similarity.toFixed(2)),
      element("p", { class: "hint facts" }, facts(each, profile.store_problem)),
    );
  return section(
    "neighbours",
    "Similar users",
    element("p", { class: "hint" }, "Similarity of the descriptions. A model may use the mean vector of these users."),
    element("ol", { class: "near" }, ...profile.neighbours.map(entry)),
  );
}

function facts(each, storeProblem) {
  if (each.num_interactions === null) {
    return storeProblem ? `Not known now: ${storeProblem}` : "The online store no longer knows this user.";
  }
  const common = each.num_shared_items === 1 ? "1 item" : `${each.num_shared_items} items`;
  return `${each.num_interactions} interactions, ${common} in common. ${each.description}`;
}
