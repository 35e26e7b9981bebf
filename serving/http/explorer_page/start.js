/* The start view: what this page can do, and the loaded releases. */

import { releases } from "./api.js";
import { definitions, element, section, title } from "./dom.js";
import { age, moment, percent } from "./format.js";

export async function startView(state, signal) {
  const loaded = await releases(signal);
  const problems = [loaded.problem, loaded.experiment_problem].filter(Boolean);
  return {
    status: "",
    nodes: [
      title("Recommendations and their reasons"),
      element(
        "p",
        {},
        "Enter a user id to see the user's description, history, similar users and recommendations with reasons. ",
        "Or search for items by meaning. Every view has its own address, which you can share.",
      ),
      ...problems.map((each) => element("p", { class: "notice problem" }, each)),
      element("div", { class: "columns" }, ...loaded.releases.map((each) => releaseCard(each, loaded.experiment))),
    ],
  };
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
