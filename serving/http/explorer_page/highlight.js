/* Point at an item anywhere, with the mouse or the keyboard, and it lights up wherever else it stands. */

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

/** Scroll the list that holds the item, but not the page: that would pull the pointer off what it points at. */
function reveal(item) {
  const list = item?.closest(".scrolls");
  if (!list) return;
  const [inner, outer] = [item.getBoundingClientRect(), list.getBoundingClientRect()];
  if (inner.top < outer.top || inner.bottom > outer.bottom) {
    list.scrollTop += inner.top - outer.top - (outer.height - inner.height) / 2;
  }
}
