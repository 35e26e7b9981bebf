/* Make elements. Strings become text nodes, never markup, because titles and descriptions are untrusted. */

const SVG = "http://www.w3.org/2000/svg";

/** element("a", {href: "#", onclick: f}, "text", child). Attributes that are null, undefined or false are left out. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A section of the page with a heading; `slot` names its place in the layout. */
export function section(slot, heading, ...children) {
  const id = `${slot}-heading`;
  return element(
    "section",
    { class: `card ${slot}`, "aria-labelledby": id },
    element("h2", { id }, heading),
    ...children,
  );
}

/** The heading of a view. It takes the focus when the view changes. */
export function title(text, ...more) {
  return element("h1", { tabindex: "-1" }, text, ...more);
}

/** A list of names and their values. */
export function definitions(facts) {
  const pair = ([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))];
  return element("dl", {}, ...Object.entries(facts).flatMap(pair));
}
