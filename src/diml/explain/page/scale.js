/** The common scale: where this pair lies among typical pairs of the model, and an image against itself. */

import { element } from "./dom.js";
import { rateText, signed } from "./numbers.js";

const LANES = [
  ["itself", "an image against itself"],
  ["same", "same class"],
  ["different", "different classes"],
];

/**
 * One lane for each landmark, with its name beside it, so that no two texts can meet.
 * @param {import("./numbers.js").Summary} summary
 */
export function makeScale({ score: shown, ranked_by: ranked, scale, threshold }) {
  const score = ranked ?? shown; // as in the headline
  const place = (value) => 100 * Math.min(1, Math.max(0, (value - scale.low) / (scale.high - scale.low)));
  const at = (node, left, right = null) => {
    node.style.left = `${place(left).toFixed(2)}%`;
    if (right !== null) node.style.width = `${(place(right) - place(left)).toFixed(2)}%`;
    return node;
  };
  const lane = (name, kind, ...marks) => [element("span", { class: "lane-name" }, name), element("span", { class: "lane", "data-kind": kind }, ...marks)];
  const number = at(element("b", { class: "here" }, signed(score, 2)), score);
  number.style.transform = `translateX(-${place(score).toFixed(2)}%)`;
  const lanes = [lane("this pair", "pair", number)];
  for (const [kind, otherwise] of LANES) {
    const [bands, marks] = [scale.bands, scale.marks].map((all) => all.filter((one) => one.kind === kind));
    if (!bands.length && !marks.length) continue;
    const drawn = [
      ...bands.map(({ low, high }) => at(element("i", { class: "band", title: `${signed(low, 2)} to ${signed(high, 2)}` }), low, high)),
      ...marks.map(({ value, label }) => at(element("i", { class: "tick", title: `${label}: ${signed(value, 2)}` }), value)),
    ];
    lanes.push(lane(marks[0]?.label ?? otherwise, kind, ...drawn));
  }
  if (threshold) {
    const name = `threshold (${rateText(threshold.false_accept_rate)} false matches)`;
    lanes.push(lane(name, "threshold", at(element("i", { class: "tick", title: signed(threshold.score, 2) }), threshold.score)));
  }
  lanes.flat().forEach((one, index) => (one.style.gridRow = String(1 + Math.floor(index / 2))));
  const line = element("span", { class: "here-line", "aria-hidden": "true" }, at(element("i"), score));
  line.style.gridRow = `1 / span ${lanes.length}`;
  const end = (words, value) => element("span", {}, words, element("span", { class: "experts-only" }, ` ${signed(value, 2)}`));
  const ends = element("span", { class: "ends" }, end("less similar", scale.low), end("more similar", scale.high));
  const names = lanes.map(([name], index) => (index ? name.textContent : `this pair ${signed(score, 2)}`));
  return element("div", { class: "common-scale", role: "group", "aria-label": `Common scale from ${signed(scale.low, 2)} to ${signed(scale.high, 2)}: ${names.join("; ")}` }, line, ...lanes.flat(), ends);
}
