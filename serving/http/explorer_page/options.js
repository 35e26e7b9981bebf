/* The form with the options of a recommendation: number, categories, recent items, releases. */

import { element } from "./dom.js";
import { go } from "./location.js";

const ROLES = { in_force: "in force", candidate: "experiment" };
const CHANGED = ["k", "categories", "recent", "seen", "release", "with"];

/** `releases`: the loaded releases as the API lists them; empty if it did not answer. */
export function optionsForm(state, releases) {
  const form = element(
    "form",
    {
      class: "options",
      onsubmit: (event) => {
        event.preventDefault();
        const given = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, value.trim()]));
        go({ user: state.user, ...given });
      },
    },
    field("Number of items", "k", { type: "number", min: 1, max: 200, value: state.k ?? 10 }),
    field("Any of these categories", "categories", { value: state.categories, placeholder: "all" }),
    field("Recent items (ids)", "recent", { value: state.recent, placeholder: "50, 172" }),
    releases.length > 0 && choice("Release", "release", state.release, "as the service chooses", releases),
    releases.length > 0 && choice("Compare with", "with", state.with, "nothing", releases),
    releases.length === 1 &&
      element(
        "p",
        { class: "hint" },
        "To compare, load a second release: grasp experiment start --share 0 --name NAME --release ID",
      ),
    element(
      "label",
      { class: "check" },
      element("input", { type: "checkbox", name: "seen", value: "1", checked: state.seen === "1" }),
      "Include items already seen",
    ),
    element("button", {}, "Apply"),
  );
  const isChanged = CHANGED.some((name) => state[name]);
  return element("details", { open: isChanged, class: "card" }, element("summary", {}, "Options and comparison"), form);
}

function field(label, name, attributes) {
  return element("label", {}, label, element("input", { name, autocomplete: "off", ...attributes }));
}

function choice(label, name, chosen, otherwise, releases) {
  const option = ({ release, role }) =>
    element("option", { value: release, selected: release === chosen }, `${release}, ${ROLES[role] ?? role}`);
  const none = element("option", { value: "" }, otherwise);
  return element("label", {}, label, element("select", { name }, none, ...releases.map(option)));
}
