/* The form with the options of a recommendation: number, categories, recent items, releases. */

import { element } from "./dom.js";
import { go } from "./location.js";

const ROLES = { in_force: "in force", candidate: "experiment" };
const CHANGED = ["k", "categories", "recent", "seen", "release", "with"];

/** `releases`, `categories`: as the API lists them; empty if it did not answer. */
export function optionsForm(state, releases, categories) {
  const form = element(
    "form",
    {
      class: "options",
      onsubmit: (event) => {
        event.preventDefault();
        go({ user: state.user, ...Object.fromEntries(new FormData(form)) });
      },
    },
    label("Number of items", element("input", { name: "k", type: "number", min: 1, max: 200, value: state.k ?? 10 })),
    categoryFields(state.categories, categories),
    label("Recent items, one id per line", lines("recent", state.recent, "50\n172")),
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

/** The lines of a text area as they are: an id may begin with a blank or hold a comma. */
export function listed(text) {
  return (text ?? "").split("\n").filter(Boolean);
}

/** The chosen categories, and a field that offers all of them and adds a line. */
function categoryFields(chosen, categories) {
  const area = lines("categories", chosen, "all");
  const add = element("input", {
    list: "offered",
    autocomplete: "off",
    onchange: () => {
      area.value = listed(`${area.value}\n${add.value}`).join("\n");
      add.value = "";
    },
  });
  const offered = categories.map(({ category }) => element("option", { value: category }));
  return [
    label("Any of these categories, one per line", area),
    label("Add a category", add, element("datalist", { id: "offered" }, ...offered)),
  ];
}

function lines(name, text, placeholder) {
  return element("textarea", { name, placeholder, rows: 2, autocomplete: "off", spellcheck: "false" }, text);
}

function label(text, ...controls) {
  return element("label", {}, text, ...controls);
}

function choice(text, name, chosen, otherwise, releases) {
  const option = ({ release, role }) =>
    element("option", { value: release, selected: release === chosen }, `${release}, ${ROLES[role] ?? role}`);
  const none = element("option", { value: "" }, otherwise);
  return label(text, element("select", { name }, none, ...releases.map(option)));
}
