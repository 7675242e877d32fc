/** Lines between regions, each through a small box with its rank and contribution; no box covers another. */

import { svgElement } from "./dom.js";
import { colourOf, decimals, inkOn, signed } from "./numbers.js";

const BOX = { letter: 7, high: 19 }; // pixels

/**
 * Draw the lines of a view over the stage, whose images are side by side or, on a narrow screen, one below the other.
 * @param {HTMLElement} stage
 * @param {{q: {cells: HTMLElement[]}, g: {cells: HTMLElement[]}}} sides
 * @param {import("./stage.js").View} view
 */
export function drawLines(stage, sides, view) {
  stage.querySelector("svg.lines")?.remove();
  const place = stage.getBoundingClientRect();
  if (!view.lines.length || !place.width) return;
  const centre = (cell) => {
    const box = cell.getBoundingClientRect();
    const down = cell.classList.contains("lit") ? 0.28 : 0.5; // a highlighted region has its numbers below
    return { x: box.x + box.width / 2 - place.x, y: box.y + down * box.height - place.y, side: Math.min(box.width, box.height) };
  };
  const frames = ["q", "g"].map((side) => sides[side].cells[0].closest(".frame").getBoundingClientRect());
  const stacked = frames[1].top > frames[0].bottom;
  const middle = stacked
    ? (frames[0].bottom + frames[1].top - stage.querySelector(".gallery figcaption").offsetHeight) / 2 - place.y
    : (frames[0].right + frames[1].left) / 2 - place.x;
  const ends = view.lines.map((flow) => [centre(sides.q.cells[flow.q]), centre(sides.g.cells[flow.g])]);
  const space = stacked ? place.width : Math.max(frames[0].height, frames[1].height);
  const start = stacked ? 0 : frames[0].top - place.y;
  const longest = view.lines.reduce((most, flow) => Math.max(most, lengthOf(String(flow.rank + 1))), 0);
  const size = (stacked ? longest : BOX.high) + 3;
  const slots = spread(ends.map(([from, to]) => crossing(from, to, middle, stacked)), size, start + size / 2, start + space - size / 2);
  const drawing = svgElement("svg", { class: "lines", width: place.width, height: place.height, "aria-hidden": "true" });
  const most = view.lines.reduce((largest, flow) => Math.max(largest, flow.contribution), 1e-12);
  const digits = decimals(most);
  view.lines.map((flow, index) => ({ flow, index })).reverse().forEach(({ flow, index }) => {
    const at = stacked ? { x: slots[index], y: middle } : { x: middle, y: slots[index] };
    const width = 1.4 + (4 * Math.max(0, flow.contribution)) / most;
    drawing.append(line(flow, ends[index], at, stacked, width, stacked ? "" : ` · ${signed(flow.contribution, digits)}`));
  });
  stage.append(drawing);
}

/** Length of a box in pixels. @param {string} words */
function lengthOf(words) {
  return 10 + BOX.letter * words.length;
}

/** Where the straight line between two ends crosses the middle. */
function crossing(from, to, middle, stacked) {
  const [along, across] = stacked ? ["y", "x"] : ["x", "y"];
  const part = (middle - from[along]) / (to[along] - from[along] || 1);
  return from[across] + part * (to[across] - from[across]);
}

/**
 * Positions near the wanted ones, in the same order and `gap` apart; the gap shrinks where the range is too small.
 * @param {number[]} wanted @param {number} gap @param {number} low @param {number} high
 */
export function spread(wanted, gap, low, high) {
  const step = Math.min(gap, (high - low) / Math.max(1, wanted.length - 1));
  const order = wanted.map((_, index) => index).sort((one, other) => wanted[one] - wanted[other]);
  const blocks = []; // pool adjacent violators: least squares on the positions minus their gaps
  order.forEach((index, rank) => {
    blocks.push({ mean: wanted[index] - step * rank, size: 1 });
    while (blocks.length > 1 && blocks.at(-2).mean > blocks.at(-1).mean) {
      const [one, other] = blocks.splice(-2);
      const size = one.size + other.size;
      blocks.push({ mean: (one.mean * one.size + other.mean * other.size) / size, size });
    }
  });
  const places = new Array(wanted.length);
  const levels = blocks.flatMap((block) => new Array(block.size).fill(block.mean));
  const highest = high - step * (wanted.length - 1);
  order.forEach((index, rank) => (places[index] = Math.min(Math.max(levels[rank], low), Math.max(low, highest)) + step * rank));
  return places;
}

/** A smooth path through three points that is parallel to one axis at each of them. */
function bend(from, at, to, along, across) {
  const point = (one, other) => (along === "x" ? `${one},${other}` : `${other},${one}`);
  const half = (start, end) => {
    const middle = (start[along] + end[along]) / 2;
    return `C${point(middle, start[across])} ${point(middle, end[across])} ${point(end[along], end[across])}`;
  };
  return `M${point(from[along], from[across])} ${half(from, at)} ${half(at, to)}`;
}

function line(flow, [from, to], at, stacked, width, value) {
  const colour = colourOf(flow.rank);
  const route = stacked ? bend(from, at, to, "y", "x") : bend(from, at, to, "x", "y");
  const words = `${flow.rank + 1}${value}`;
  const long = lengthOf(words);
  return svgElement(
    "g",
    { class: "flow", "data-q": flow.q, "data-g": flow.g, "data-rank": flow.rank },
    svgElement("path", { d: route, class: "casing", "stroke-width": width + 2.6 }),
    svgElement("path", { d: route, stroke: colour, "stroke-width": width }),
    ...[from, to].map((end) => svgElement("circle", { cx: end.x, cy: end.y, r: Math.min(5, end.side / 5), fill: colour })),
    svgElement("rect", { x: at.x - long / 2, y: at.y - BOX.high / 2, width: long, height: BOX.high, rx: 6, fill: colour }),
    svgElement("text", { x: at.x, y: at.y, fill: inkOn(colour) }, words),
  );
}
