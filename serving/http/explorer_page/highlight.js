/* Highlight every occurrence of the item under the pointer or the keyboard focus. */

export function highlightIn(view) {
  view.addEventListener("pointerover", (event) => light(view, event.target));
  view.addEventListener("focusin", (event) => light(view, event.target));
  view.addEventListener("pointerleave", () => light(view, document.activeElement));
  view.addEventListener("focusout", () => light(view, null));
}

function light(view, target) {
  const named = target?.closest?.("[data-item]");
  for (const each of view.querySelectorAll(".lit")) each.classList.remove("lit");
  if (!named || !view.contains(named)) return;
  const same = view.querySelectorAll(`[data-item="${CSS.escape(named.dataset.item)}"]`);
  for (const each of same) each.classList.add("lit");
  if (named.closest(".scrolls") === null) reveal([...same].find((each) => each.closest(".scrolls")));
}

/** Scroll the list that holds the item, but not the page: the pointer must stay on its target. */
function reveal(item) {
  const list = item?.closest(".scrolls");
  if (!list) return;
  const [inner, outer] = [item.getBoundingClientRect(), list.getBoundingClientRect()];
  if (inner.top < outer.top || inner.bottom > outer.bottom) {
    list.scrollTop += inner.top - outer.top - (outer.height - inner.height) / 2;
  }
}
