/* What is shown before anything is asked: what one can do here, and which releases answer. */

import { releases } from "./api.js";
import { definitions, element, section, title } from "./dom.js";
import { age, moment, percent } from "./format.js";

export async function startView(state, signal) {
  const loaded = await releases(signal);
  const problems = [loaded.problem, loaded.experiment_problem].filter(Boolean);
  return {
    status: "",
    nodes: [
      title("What is recommended, and why"),
      element(
        "p",
        {},
        "Look a user up to see their description, history and similar users, and what is recommended to them and ",
        "why; or look for items by what they are about. The address of any view can be sent to somebody else.",
      ),
      ...problems.map((each) => element("p", { class: "notice problem" }, each)),
      element("div", { class: "columns" }, ...loaded.releases.map((each) => releaseCard(each, loaded.experiment))),
    ],
  };
}

function releaseCard(each, experiment) {
  const isCandidate = each.role === "candidate";
  const facts = {
    Model: each.model ?? "none: it recommends what is popular",
    "Features of": `${each.day}, ${age(each.age_hours)}`,
    Items: each.num_items,
    Published: `${moment(each.published_at)} UTC`,
    "Feature version": each.feature_version,
    ...(isCandidate && experiment && { Experiment: `${experiment.name}, ${percent(experiment.share)} of the users` }),
  };
  return section(
    `release-${each.role}`,
    isCandidate ? `Candidate ${each.release}` : `In force: ${each.release}`,
    definitions(facts),
  );
}
