/* Two charts that fill their container's width: a bar for a share, and a timeline of a user's interactions. */

import { svg } from "./dom.js";
import { day, moment } from "./format.js";

const NUM_BINS = 48;
const HEIGHT = 64;
const LARGEST_STEP = 10; // px per interaction, if no bin holds many
const MINUTES_MATTER_MS = 2 * 24 * 3600 * 1000;

/** A bar filled to a share from 0 to 1. It is hidden from screen readers, because a number beside it says the same. */
export function bar(share) {
  const percent = `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(1)}%`;
  return svg(
    "svg",
    { class: "bar", "aria-hidden": "true", width: "100%", height: 6 },
    svg("rect", { class: "track", width: "100%", height: 6, rx: 3 }),
    svg("rect", { class: "value", width: percent, height: 6, rx: 3 }),
  );
}

/** One block per interaction, stacked in bins of equal time. `history`: [{item_id, title, at}] in any order. */
export function timeline(history) {
  const times = history.map((each) => Date.parse(each.at));
  const first = Math.min(...times);
  const last = Math.max(...times);
  const bins = Array.from({ length: NUM_BINS }, () => []);
  history.forEach((each, index) => bins[binOf(times[index], first, last)].push(each));
  const tallest = Math.max(...bins.map((bin) => bin.length));
  const step = Math.min(LARGEST_STEP, HEIGHT / tallest);
  const width = 100 / NUM_BINS;
  const stack = (bin, column) => bin.map((each, level) => block(each, column * width, width, level, step));
  return svg(
    "svg",
    { class: "timeline", role: "img", "aria-label": inWords(history, first, last), width: "100%", height: HEIGHT + 22 },
    ...bins.flatMap(stack),
    svg("line", { class: "axis", x1: 0, x2: "100%", y1: HEIGHT + 1, y2: HEIGHT + 1 }),
    ...labels(first, last),
  );
}

function binOf(time, first, last) {
  if (first === last) return NUM_BINS / 2;
  return Math.min(NUM_BINS - 1, Math.floor((NUM_BINS * (time - first)) / (last - first)));
}

function block(each, x, width, level, step) {
  const gap = step > 3 ? 1 : 0;
  return svg(
    "rect",
    {
      class: "event",
      "data-item": each.item_id,
      x: `${x + width * 0.1}%`,
      width: `${width * 0.8}%`,
      y: HEIGHT - (level + 1) * step,
      height: step - gap,
    },
    svg("title", {}, `${each.title ?? each.item_id}, ${moment(each.at)}`),
  );
}

function labels(first, last) {
  const label = (x, anchor, time) => svg("text", { class: "label", x, y: HEIGHT + 17, "text-anchor": anchor }, time);
  if (first === last) return [label("50%", "middle", moment(first))];
  const style = last - first < MINUTES_MATTER_MS ? moment : day;
  return [label("0", "start", style(first)), label("100%", "end", style(last))];
}

function inWords(history, first, last) {
  const num = history.length === 1 ? "1 interaction" : `${history.length} interactions`;
  return first === last ? `${num} at ${moment(first)}` : `${num} between ${moment(first)} and ${moment(last)}`;
}
