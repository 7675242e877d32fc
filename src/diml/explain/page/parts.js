/** The view for everybody: both images with their outlined parts, and the parts as a list of rows. */

import { element, freshId, svgElement } from "./dom.js";
import { capital, inkOn, layoutOf, partColour, percent, shareText, shortName } from "./numbers.js";
import { badgesOf, boxOf, outlinePath, piecesOf } from "./outline.js";

/**
 * @typedef {Object} PartsView
 * @property {number | null} active  the part that is hovered, focused or pinned, from 1
 * @property {number | null} pinned
 * @property {boolean} overlay  whether parts are filled with their colours
 *
 * @typedef {{look: (part: number | null) => void, pin: (part: number) => void}} PartListeners
 */

const SIDES = [["q", "query"], ["g", "gallery"]];

/**
 * The two images side by side.
 * @param {import("./numbers.js").Pair} pair
 * @param {import("./numbers.js").Image[]} images
 * @param {PartListeners} on
 */
export function makePartImages(pair, images, on) {
  const sides = SIDES.map(([side, role]) => makePartSide(pair, side, role, images[pair.images[role]], on));
  const root = element("div", { class: "part-images" }, ...sides.map(({ figure }) => figure));
  const watcher = new ResizeObserver(() => sides.forEach(({ draw }) => draw()));
  sides.forEach(({ frame }) => watcher.observe(frame));
  /** @param {PartsView} view */
  function paint(view) {
    root.toggleAttribute("data-overlay", view.overlay);
    for (const group of root.querySelectorAll(".part")) paintPart(group, view);
    for (const numbers of root.querySelectorAll(".badges")) numbers.classList.toggle("dim", view.active !== null && Number(numbers.dataset.number) !== view.active);
    for (const { veil } of sides) veil(view.active);
  }
  return { root, paint, stop: () => watcher.disconnect() };
}

function paintPart(group, { active, pinned }) {
  const part = Number(group.dataset.part);
  group.classList.toggle("active", part === active);
  group.classList.toggle("dim", active !== null && part !== active);
  group.setAttribute("aria-pressed", String(part === pinned));
}

function makePartSide(pair, side, role, image, on) {
  const { parts, unmatched } = pair.summary;
  const grid = pair[`grid_${side}`];
  const layout = layoutOf(grid, pair[`weight_${side}`].length);
  const shown = element("img", { src: image.src, width: image.width, height: image.height, alt: `The ${role} image, ${shortName(image.name)}, as the model saw it`, draggable: "false" });
  const hatch = freshId("hatch");
  const groups = parts.map((part) => partGroup(part, side, pair.summary));
  const [veilPath, unmatchedPath] = [svgElement("path", { class: "veil", "fill-rule": "evenodd" }), svgElement("path", { class: "unmatched", fill: `url(#${hatch})` })];
  const drawing = svgElement("svg", { class: "outlines", role: "group", "aria-label": `Parts of the ${role} image` }, hatchPattern(hatch), unmatchedPath, veilPath, ...groups.map(({ root }) => root), ...groups.map(({ numbers }) => numbers));
  const frame = element("div", { class: "frame" }, shown, ...(grid ? [drawing] : []));
  const state = { active: null, size: { width: image.width, height: image.height } };
  const regionsOf = (part) => part[`regions_${side}`];

  function draw() {
    const box = frame.getBoundingClientRect();
    if (box.width) state.size = { width: box.width, height: box.height };
    const { size } = state;
    const cell = Math.min(size.width / layout[1], size.height / layout[0]);
    const narrow = size.width < 300;
    const stroke = narrow ? 2.2 : 3;
    const inset = Math.min(Math.max(stroke / 2 + 1.4, 0.05 * cell), 5);
    drawing.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    drawing.style.setProperty("--stroke", stroke);
    const badges = badgesOf(parts.map(regionsOf), layout, size, narrow ? 8.5 : 12);
    groups.forEach(({ paths, numbers }, row) => {
      const path = outlinePath(regionsOf(parts[row]), layout, size, inset);
      for (const one of paths) one.setAttribute("d", path);
      numbers.replaceChildren(...badges.filter(({ part }) => part === row).map((at) => badge(parts[row].part, at, narrow ? 8.5 : 12)));
    });
    unmatchedPath.setAttribute("d", unmatched ? outlinePath(unmatched[role].regions, layout, size, 0.5) : "");
    veil(state.active);
  }
  /** A light veil over everything but the active part. @param {number | null} active */
  function veil(active) {
    state.active = active;
    const part = parts.find((one) => one.part === active);
    const { width, height } = state.size;
    veilPath.setAttribute("d", part ? `M0 0H${width}V${height}H0Z${outlinePath(regionsOf(part), layout, state.size, 0)}` : "");
  }
  listenToParts(frame, groups.map(({ root }) => root), on);
  draw();
  const name = image.name === role ? "" : element("span", { class: "name", title: image.name }, shortName(image.name));
  const caption = element("figcaption", {}, element("b", {}, capital(role)), " ", name);
  return { figure: element("figure", { class: `side ${role}` }, caption, frame), frame, draw, veil };
}

function partGroup(part, side, summary) {
  const colour = partColour(part.part);
  const paths = ["hit-area", "casing", "edge"].map((name) => svgElement("path", { class: name, ...(name === "edge" ? { stroke: colour } : {}), ...(name === "hit-area" ? { fill: colour } : {}) }));
  const numbers = svgElement("g", { class: "badges", "data-number": part.part, "data-side": side }); // above all outlines
  const label = partLabel(part, summary);
  const root = svgElement("g", { class: "part", role: "button", tabindex: part.part === 1 ? 0 : -1, "data-part": part.part, "data-side": side, "aria-label": label, "aria-pressed": "false" }, ...paths);
  return { root, paths, numbers };
}

/** The accessible name of a part. */
function partLabel(part, summary) {
  return `Part ${part.part}, ${shareText(part.share)} of the similarity: ${placeOf(part, "q")} of the query, ${placeOf(part, "g")} of the gallery image${summary.parts.length > 1 ? `; ${summary.parts.length} parts` : ""}`;
}

const placeOf = (part, side) => part[`place_${side}`];

function badge(number, { x, y }, radius) {
  const colour = partColour(number);
  return svgElement("g", { class: "badge" }, svgElement("circle", { cx: x, cy: y, r: radius, fill: colour }), svgElement("text", { x, y, fill: inkOn(colour), "font-size": 1.25 * radius }, String(number)));
}

function hatchPattern(id) {
  const stripe = svgElement("path", { d: "M0 0V8", stroke: "#5d626b", "stroke-width": 4 });
  const pattern = svgElement("pattern", { id, width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, svgElement("rect", { width: 8, height: 8, fill: "#b9bdc4", "fill-opacity": 0.72 }), stripe);
  return svgElement("defs", {}, pattern);
}

/** Pointer, focus and keys of parts, in an image or in the list; one of them is in the tab order, arrow keys move between them. */
function listenToParts(root, items, on) {
  const itemAt = (event) => event.target.closest("[data-part]");
  const partAt = (event) => (itemAt(event) ? Number(itemAt(event).dataset.part) : null);
  const focus = (item) => {
    for (const one of items) one.setAttribute("tabindex", one === item ? "0" : "-1");
    item.focus();
  };
  root.addEventListener("pointerover", (event) => event.pointerType !== "touch" && on.look(partAt(event)));
  root.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && on.look(null));
  root.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && on.look(partAt(event)));
  root.addEventListener("focusout", () => on.look(null));
  root.addEventListener("click", (event) => partAt(event) && on.pin(partAt(event)));
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  root.addEventListener("keydown", (event) => {
    const item = itemAt(event);
    if (!item || event.altKey || event.ctrlKey || event.metaKey) return;
    const row = items.indexOf(item);
    if (event.key === "Enter" || event.key === " ") on.pin(partAt(event));
    else if (event.key === "Home" || event.key === "End") focus(items.at(event.key === "Home" ? 0 : -1));
    else if (event.key in steps) focus(items[(row + steps[event.key] + items.length) % items.length]);
    else return;
    event.preventDefault();
  });
}

/**
 * The parts as rows with thumbnails and bars, then what belongs to no part.
 * @param {import("./numbers.js").Pair} pair
 * @param {import("./numbers.js").Image[]} images
 * @param {PartListeners} on
 */
export function makePartList(pair, images, on) {
  const { summary } = pair;
  const rows = summary.parts.map((part) => partRow(pair, images, part));
  const list = element("div", { class: "part-rows", role: "group", "aria-label": "Parts, largest first" }, ...rows);
  listenToParts(list, rows, on);
  const root = element("div", { class: "part-list" }, element("h2", {}, "What matches"), list, ...otherRows(summary));
  /** @param {PartsView} view */
  function paint(view) {
    for (const row of rows) paintPart(row, view);
  }
  return { root, paint };
}

function partRow(pair, images, part) {
  const chip = element("span", { class: "number" }, String(part.part));
  const colour = partColour(part.part);
  chip.style.cssText = `background:${colour};color:${inkOn(colour)}`;
  const words = pair.grid_q && pair.grid_g ? `${placeOf(part, "q")} \u2194 ${placeOf(part, "g")}${piecesText(pair, part)}` : `${part.regions_q.length} and ${part.regions_g.length} regions`;
  const text = element("span", { class: "words" }, ...shareLine(part.share, " of the similarity", colour), element("span", { class: "places" }, words));
  return element("button", { type: "button", class: "row part-row", "data-part": part.part, tabindex: part.part === 1 ? 0 : -1, "aria-pressed": "false", "aria-label": partLabel(part, pair.summary) }, chip, thumbnails(pair, images, part), text);
}

/** What must be said of a part that is not connected. */
function piecesText(pair, part) {
  const counts = SIDES.map(([side]) => piecesOf(part[`regions_${side}`], pair[`grid_${side}`][1]).length);
  const apart = SIDES.filter(([side]) => !part[`connected_${side}`]);
  if (!apart.length) return "";
  return ` (${apart.map(([side, role]) => `${counts[side === "q" ? 0 : 1]} pieces in the ${role}`).join(", ")})`;
}

/** A share as text and as a bar on the scale 0 to 100 %. */
function shareLine(share, words, colour) {
  const bar = element("i");
  bar.style.cssText = `width:${(100 * Math.min(1, Math.max(0, share ?? 0))).toFixed(2)}%;background:${colour}`;
  return [element("span", { class: "amount" }, element("b", {}, shareText(share)), words), element("span", { class: "share-bar", "aria-hidden": "true" }, bar)];
}

/**
 * Both sides of a part, cut out; empty where the regions form no known grid.
 * @param {import("./numbers.js").Pair} pair @param {import("./numbers.js").Image[]} images @param {import("./numbers.js").Part} part
 */
export function thumbnails(pair, images, part) {
  const drawn = SIDES.filter(([side]) => pair[`grid_${side}`]).map(([side, role]) => thumbnail(images[pair.images[role]], part[`regions_${side}`], pair[`grid_${side}`], partColour(part.part)));
  return element("span", { class: "thumbs", "aria-hidden": "true" }, ...drawn);
}

function thumbnail(image, regions, layout, colour) {
  const size = { width: image.width, height: image.height };
  const box = boxOf(regions, layout, size);
  const unit = Math.max(box.width, box.height) / 72;
  const path = outlinePath(regions, layout, size, 0.8 * unit);
  const edge = (stroke, width) => svgElement("path", { d: path, fill: "none", stroke, "stroke-width": width * unit });
  const veil = svgElement("path", { d: `M0 0H${size.width}V${size.height}H0Z${path}`, "fill-rule": "evenodd", class: "veil" });
  const shown = svgElement("image", { href: image.src, width: size.width, height: size.height });
  return svgElement("svg", { class: "thumb", viewBox: `${box.x} ${box.y} ${box.width} ${box.height}`, preserveAspectRatio: "xMidYMid meet" }, shown, veil, edge("#ffffff", 4.4), edge(colour, 2.4));
}

/** The rest of the score, what has no counterpart, and the background. */
function otherRows(summary) {
  const rows = [];
  const line = (kind, ...children) => rows.push(element("div", { class: `row other ${kind}` }, ...children));
  const sharing = (kind, share, words, reason = "") => line(kind, element("span", { class: "words" }, ...shareLine(share, ` ${words}`, "#8a8f98"), ...(reason ? [element("span", { class: "places" }, reason)] : [])));
  if (summary.pooled) sharing("overall", summary.pooled.share, "from comparing the images as a whole", "The model also compares both images as a whole, which cannot be divided among regions here.");
  if (summary.overall) sharing("between", summary.between.share, "overall look", "All other pairs of regions");
  else sharing("between", summary.between.share, "all other pairs of regions");
  if (summary.unmatched) {
    const sides = SIDES.map(([, role]) => `${percent(summary.unmatched[role].mass)} of the ${role === "query" ? "query" : "gallery image"}`);
    line("missing", element("i", { class: "hatched" }), element("span", {}, element("b", {}, "No counterpart: "), sides.join(", ")));
  }
  if (summary.background) line("background", backgroundOf(summary.background));
  return rows;
}

function backgroundOf(shares) {
  const kinds = [["object", "object to object"], ["mixed", "object to background"], ["background", "background to background"]];
  const bars = kinds.map(([kind]) => {
    const bar = element("i", { class: kind });
    bar.style.width = `${(100 * Math.min(1, Math.max(0, shares[kind]))).toFixed(2)}%`;
    return bar;
  });
  const words = kinds.map(([kind, name]) => element("span", { class: "key" }, element("i", { class: kind }), `${name} ${shareText(shares[kind])}`));
  return element("span", { class: "words" }, element("span", { class: "amount" }, element("b", {}, shareText(shares.background)), " comes from the background alone"), element("span", { class: "share-bar stacked", "aria-hidden": "true" }, ...bars), element("span", { class: "places keys" }, ...words));
}
