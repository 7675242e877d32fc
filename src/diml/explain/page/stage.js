/** The two images with their regions and the lines between them. */

import { element } from "./dom.js";
import { drawLines } from "./lines.js";
import { cellName, largestOf, layoutOf, lineOf, percent, reducedCosts, shortName, signed, tintOf, veil, wholeTotals } from "./numbers.js";

/**
 * @typedef {Object} View  The displayed state of a pair.
 * @property {"weights" | "whole" | "plan" | "cosine" | "reduced"} tab
 * @property {number} digits  after the point, of masses and contributions
 * @property {import("./numbers.js").Flow[]} lines  flows to draw
 * @property {import("./numbers.js").Region | null} active  the region that is hovered, focused or pinned
 * @property {boolean} pinned
 * @property {{q: number, g: number} | null} pairOf  the entry of the ledger under the pointer
 *
 * @typedef {Object} Listeners
 * @property {(at: import("./numbers.js").Region | null) => void} look  pointer or focus entered a region, or left
 * @property {(at: import("./numbers.js").Region) => void} pin
 */

/**
 * Build the stage of one pair.
 * @param {import("./numbers.js").Pair} pair
 * @param {import("./numbers.js").Image[]} images
 * @param {Listeners} on
 */
export function makeStage(pair, images, on) {
  const sides = {
    q: makeSide(pair, "q", images[pair.images.query], on),
    g: makeSide(pair, "g", images[pair.images.gallery], on),
  };
  const root = element("div", { class: "stage" }, sides.q.figure, sides.g.figure);
  let shown = null;
  const redraw = () => shown && drawLines(root, sides, shown);
  const watcher = new ResizeObserver(redraw);
  watcher.observe(root);
  for (const image of root.querySelectorAll("img")) image.addEventListener("load", redraw);
  /** @param {View} view */
  function paint(view) {
    shown = view;
    for (const side of ["q", "g"]) paintSide(pair, side, sides[side], view);
    redraw();
  }
  return { root, paint, stop: () => watcher.disconnect() };
}

function makeSide(pair, side, image, on) {
  const role = side === "q" ? "query" : "gallery";
  const grid = pair[`grid_${side}`];
  const labels = pair[`weight_${side}`].map((_, region) => labelFor(pair, side, region));
  const { frame, cells } = regionGrid(image, role, side, grid, labels, on);
  const name = image.name === role ? "" : element("span", { class: "name", title: image.name }, shortName(image.name));
  const note = grid ? "" : " (no known grid: regions in their order)";
  const caption = element("figcaption", {}, element("b", {}, role), " ", name, note);
  return { figure: element("figure", { class: `side ${role}` }, caption, frame), cells };
}

/**
 * An image with its regions over it: an ARIA grid, one cell of which is in the tab order.
 * @param {import("./numbers.js").Image} image
 * @param {string} role  query or gallery
 * @param {import("./numbers.js").SideKey} side
 * @param {import("./numbers.js").Grid} grid
 * @param {string[]} labels  accessible names of the regions
 * @param {Listeners} on
 */
export function regionGrid(image, role, side, grid, labels, on) {
  const [rows, columns] = layoutOf(grid, labels.length);
  const table = element("div", { class: "cells", role: "grid", "aria-label": `Regions of the ${role} image` });
  table.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
  const cells = labels.map((label, region) =>
    element("div", { class: "cell", role: "gridcell", tabindex: "-1", "data-side": side, "data-region": region, "aria-label": label, "aria-selected": "false" }),
  );
  for (let row = 0; row < rows; row += 1) {
    table.append(element("div", { role: "row" }, ...cells.slice(row * columns, (row + 1) * columns)));
  }
  cells[0].tabIndex = 0;
  listen(table, cells, side, columns, on);
  const shown = element("img", { src: image.src, width: image.width, height: image.height, draggable: "false" });
  shown.alt = `The ${role} image, ${shortName(image.name)}, as the model saw it`;
  const frame = element("div", { class: "frame" }, ...(grid ? [shown] : [element("div", { class: "blank" })]), table);
  return { frame, cells };
}

/** The accessible name of a region. */
function labelFor(pair, side, region) {
  const other = side === "q" ? "g" : "q";
  const row = lineOf(pair.plan, { side, region });
  const best = row.indexOf(largestOf(row));
  const weight = pair[`weight_${side}`][region];
  const strongest = weight > 0 ? `, mostly ${side === "q" ? "to" : "from"} ${cellName(best, pair[`grid_${other}`])}` : "";
  const name = cellName(region, pair[`grid_${side}`]);
  return `${name}: ${side === "q" ? "sends" : "receives"} ${percent(weight)} of the mass${strongest}`;
}

/** Pointer, focus and keys of the regions of a side; one of them is in the tab order, arrow keys move between them. */
function listen(table, cells, side, columns, on) {
  const regionAt = (event) => {
    const cell = event.target.closest(".cell");
    return cell && { side, region: Number(cell.dataset.region) };
  };
  const focus = (region) => {
    for (const cell of cells) cell.tabIndex = -1;
    cells[region].tabIndex = 0;
    cells[region].focus();
  };
  table.addEventListener("pointerover", (event) => event.pointerType !== "touch" && on.look(regionAt(event)));
  table.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && on.look(null));
  table.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && on.look(regionAt(event)));
  table.addEventListener("focusout", () => on.look(null));
  table.addEventListener("click", (event) => {
    const at = regionAt(event);
    if (at) {
      focus(at.region);
      on.pin(at);
    }
  });
  const ends = { Home: () => 0, End: () => cells.length - 1 };
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  table.addEventListener("keydown", (event) => {
    const at = regionAt(event);
    if (!at || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") on.pin(at);
    else if (event.key in ends) focus(ends[event.key]());
    else if (event.key in steps) {
      const next = at.region + steps[event.key];
      const turned = Math.abs(steps[event.key]) === 1 && Math.floor(next / columns) !== Math.floor(at.region / columns);
      if (cells[next] && !turned) focus(next);
    } else return;
    event.preventDefault();
  });
}

function paintSide(pair, side, { cells }, view) {
  const { active } = view;
  const here = active?.side === side;
  const related = active && !here; // regions of the other side of the active one
  const values = related ? lineOf(relationOf(pair, view.tab), active) : null;
  const labelled = related ? mostOf(values, view.tab, 9) : new Set();
  const strengths = related ? veilsOf(values, view.tab) : null;
  const shades = shadedValues(pair, side, view.tab);
  cells.forEach((cell, region) => {
    const chosen = here && active.region === region;
    cell.style.backgroundColor = related ? veil(strengths[region]) : chosen ? "transparent" : tintOf(shades[region]);
    cell.classList.toggle("active", chosen);
    cell.classList.toggle("lit", labelled.has(region));
    cell.classList.toggle("pointed", view.pairOf?.[side] === region);
    cell.setAttribute("aria-selected", String(chosen && view.pinned));
    cell.replaceChildren(...(labelled.has(region) ? labelOf(pair, view, values[region]) : []));
  });
}

/** What relates a region to those of the other side. */
function relationOf(pair, tab) {
  if (tab === "cosine") return pair.cosine;
  return tab === "reduced" ? reducedCosts(pair) : pair.plan;
}

/** The numbers in a region related to the active one: share and mass, the cosine, or the reduced cost. */
function labelOf(pair, view, value) {
  if (view.tab === "cosine" || view.tab === "reduced") return [element("span", { class: "share" }, signed(value, 2))];
  const whole = pair[`weight_${view.active.side}`][view.active.region];
  const share = element("span", { class: "share" }, percent(whole > 0 ? value / whole : 0));
  return [share, element("span", { class: "mass" }, signed(value, view.digits))];
}

/**
 * What shades the regions without an active one, as multiples of an equal share 1/R: their weights, or what they account
 * for of the whole score. A scale that does not depend on the image shows even weights as even.
 * @param {import("./numbers.js").Pair} pair @param {import("./numbers.js").SideKey} side @param {View["tab"]} tab
 */
export function shadedValues(pair, side, tab) {
  const weights = pair[`weight_${side}`];
  const whole = tab === "whole" ? wholeTotals(pair, side) : null;
  if (!whole) return weights.map((weight) => weight * weights.length);
  return whole.map((total) => (pair.score > 0 ? (total * weights.length) / pair.score : 1));
}

/** How visible each related region is, 0 to 1: cosines and reduced costs on fixed scales, masses relative to the largest. */
function veilsOf(values, tab) {
  if (tab === "cosine") return values;
  if (tab === "reduced") return values.map((cost) => Math.max(0, 1 - 4 * cost));
  const high = largestOf(values, 1e-12);
  return values.map((value) => value / high);
}

/** The regions with the largest values, at least a twentieth of the largest; of reduced costs the smallest. */
function mostOf(values, tab, count) {
  const sign = tab === "reduced" ? -1 : 1;
  const order = values.map((_, region) => region).sort((one, other) => sign * (values[other] - values[one]));
  return new Set(order.slice(0, count).filter((region) => sign < 0 || values[region] > 0.05 * values[order[0]]));
}
