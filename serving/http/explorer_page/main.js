/* Show the view that the address names, or an error. */

import { ApiError, token } from "./api.js";
import { element, title } from "./dom.js";
import { highlightIn } from "./highlight.js";
import { itemView } from "./item.js";
import { go, read } from "./location.js";
import { searchView } from "./search.js";
import { startView } from "./start.js";
import { userView } from "./user.js";

const [view, status, release, forget] = ["view", "status", "release", "forget-token"].map((id) =>
  document.getElementById(id),
);
const HEADINGS = { 404: "Not found", 422: "Invalid request", 503: "Not available now" };
let running = new AbortController();

/** Show the view that the address names. It cancels an earlier call that still runs. */
async function show({ focus }) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const state = read();
  document.getElementById("user-id").value = state.user ?? "";
  document.getElementById("query").value = state.q ?? "";
  view.setAttribute("aria-busy", "true");
  status.textContent = "Loading…";
  let shown;
  try {
    shown = await viewOf(state)(state, signal);
  } catch (error) {
    if (signal.aborted) return;
    shown = failure(error);
  }
  if (signal.aborted) return;
  view.replaceChildren(...shown.nodes);
  view.removeAttribute("aria-busy");
  status.textContent = shown.status;
  release.textContent = shown.release ? `Release ${shown.release}` : "";
  forget.hidden = token.get() === null;
  const heading = view.querySelector("h1");
  document.title = `${heading.textContent} · GRASP Explorer`;
  if (shown.focus) shown.focus.focus();
  else if (focus) heading.focus();
}

function viewOf(state) {
  if (state.user) return userView;
  if (state.item) return itemView;
  return state.q ? searchView : startView;
}

function failure(error) {
  if (!(error instanceof ApiError)) console.error(error); // a bug of this page: keep the trace
  if (error.wantsToken) return tokenForm(error);
  const retry = element("button", { type: "button", onclick: () => show({ focus: true }) }, "Try again");
  const isEmpty = error.status === 503 && error.message.startsWith("no release");
  const heading = isEmpty ? "No release yet" : (HEADINGS[error.status] ?? "Something went wrong");
  return {
    status: `${heading}: ${error.message}`,
    release: null,
    nodes: [
      title(heading),
      element("p", { class: "notice problem" }, error.message),
      isEmpty && element("p", {}, "The daily refresh publishes the first release. Then this page has something to show."),
      retry,
    ].filter(Boolean),
  };
}

function tokenForm(error) {
  const input = element("input", {
    id: "token",
    type: "password",
    required: true,
    autocomplete: "off",
    pattern: "[\\x21-\\x7e]+", // a header allows nothing else
    title: "ASCII letters, digits and punctuation",
  });
  const form = element(
    "form",
    {
      class: "options card",
      onsubmit: (event) => {
        event.preventDefault();
        token.set(input.value.trim());
        show({ focus: true });
      },
    },
    element("label", { for: "token" }, "Token", input),
    element("button", {}, "Use token"),
  );
  const refused = token.get() !== null;
  token.forget();
  return {
    status: refused ? `The token was refused: ${error.message}` : "This service needs a token.",
    release: null,
    focus: input,
    nodes: [
      title(refused ? "The token was refused" : "Token required"),
      element("p", {}, "Enter an access token of this service. It is kept in this tab until you close the tab."),
      form,
    ],
  };
}

document.getElementById("find-user").addEventListener("submit", (event) => {
  event.preventDefault();
  const { k, categories, recent, seen, release: asked, with: other } = read();
  const id = new FormData(event.target).get("user"); // as it is: an id may begin or end with a blank
  find({ user: id, k, categories, recent, seen, release: asked, with: other });
});
document.getElementById("find-items").addEventListener("submit", (event) => {
  event.preventDefault();
  find({ q: new FormData(event.target).get("q").trim() });
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash holds the view's state, so it cannot be the link's target
  view.focus();
});
forget.addEventListener("click", () => {
  token.forget();
  show({ focus: true });
});
window.addEventListener("hashchange", () => show({ focus: true }));
highlightIn(view);
show({ focus: false });

/** Go to the state, or reload the view if it is the current one. */
function find(state) {
  const before = location.hash;
  go(state);
  if (location.hash === before) show({ focus: true });
}
