/* The start view: people and searches to click, then the loaded releases. */

import { examples, releases } from "./api.js";
import { definitions, element, section, title } from "./dom.js";
import { age, moment, percent } from "./format.js";
import { address } from "./location.js";
import { settled } from "./settled.js";

export async function startView(state, signal) {
  const [loaded, chosen] = await Promise.all([releases(signal), settled(examples(signal))]);
  const missing = chosen.value?.store_problem && `People may be missing: ${chosen.value.store_problem}`;
  const problems = [loaded.problem, loaded.experiment_problem, chosen.error?.message, missing].filter(Boolean);
  return {
    status: "",
    nodes: [
      title("Recommendations and their reasons"),
      element(
        "p",
        {},
        "Choose a person to see what they took, what is recommended and why. Or search for items by meaning. ",
        "Every view has its own address, which you can share.",
      ),
      ...problems.map((each) => element("p", { class: "notice problem" }, each)),
      element(
        "div",
        { class: "columns" },
        ...(chosen.value ? [peopleCard(chosen.value.people), searchesCard(chosen.value.searches)] : []),
        ...loaded.releases.map((each) => releaseCard(each, loaded.experiment)),
      ),
    ],
  };
}

function peopleCard(people) {
  const entry = (each) =>
    element(
      "li",
      {},
      element("a", { href: address({ user: each.user_id }) }, `User ${each.user_id}`),
      element("span", { class: "numbers" }, `${each.num_interactions} interactions`),
      element("p", { class: "hint" }, each.description),
      each.latest_titles.length > 0 && element("p", { class: "hint" }, `Last: ${each.latest_titles.join("; ")}`),
    );
  const none = element("p", { class: "hint" }, "No examples here. Enter a user id above.");
  return section("recommended", "People", people.length > 0 ? element("ul", { class: "people" }, ...people.map(entry)) : none);
}

function searchesCard(searches) {
  const entry = (q) => element("li", {}, element("a", { href: address({ q }) }, q));
  const none = element("p", { class: "hint" }, "The items have no categories. Search for anything above.");
  return section("profile", "Searches", searches.length > 0 ? element("ul", {}, ...searches.map(entry)) : none);
}

function releaseCard(each, experiment) {
  const isCandidate = each.role === "candidate";
  const facts = {
    Model: each.model ?? "none; it recommends popular items",
    "Features of": `${each.day}, ${age(each.age_hours)}`,
    Items: each.num_items,
    Published: `${moment(each.published_at)} UTC`,
    "Feature version": each.feature_version,
    ...(isCandidate && experiment && { Experiment: `${experiment.name}, ${percent(experiment.share)} of the users` }),
  };
  return section(
    `release-${each.role}`,
    isCandidate ? `Experiment: ${each.release}` : `In force: ${each.release}`,
    definitions(facts),
  );
}
