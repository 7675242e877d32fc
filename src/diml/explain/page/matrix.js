/** A matrix of all pairs of regions, drawn on a canvas, with the values of the entry under the pointer. */

import { element } from "./dom.js";
import { cellName, largestOf, signed } from "./numbers.js";

const MARGIN = { left: 42, top: 34 };
/** Name, ends of the scale that no image changes (null: the largest value), and what an entry is. */
const MATRICES = {
  plan: ["Transported mass", 0, null, "Mass transported from each query region (row) to each gallery region (column)."],
  cosine: ["Cosine", 0, 1, "Cosine of the features of each query region (row) and each gallery region (column), white at 0 or less and darkest at 1."],
  reduced: ["Reduced cost", 0.25, 0, "Reduced cost of each query region (row) and each gallery region (column), darkest at 0, where mass can flow, and white at 0.25 or more."],
};

/**
 * @param {import("./numbers.js").Pair} pair
 * @param {"plan" | "cosine" | "reduced"} what
 * @param {number[][]} values  (Rq, Rg)
 * @param {(entry: {q: number, g: number} | null) => void} onPoint
 */
export function makeMatrix(pair, what, values, onPoint) {
  const [rows, columns] = [values.length, values[0].length];
  const flat = values.flat();
  const [title, low, end, hint] = MATRICES[what];
  const high = end ?? largestOf(flat, 1e-12);
  const canvas = element("canvas", { class: "matrix", role: "img" });
  canvas.setAttribute("aria-label", `${title} of every pair of regions; the ledger below lists them`);
  const idle = `${hint} Point at an entry to read it.`;
  const readout = element("p", { class: "readout" }, idle);
  const root = element("div", { class: "matrix-box" }, canvas, readout);
  let entry = null;
  let active = null;
  let pixels = null;

  /** The values as an image with one pixel each, cached until the colours change: a matrix may have 40,000 entries. */
  function coloured(ink) {
    const scheme = ["--matrix-high", "--matrix-low"].map((name) => ink.getPropertyValue(name));
    if (pixels?.scheme === scheme.join()) return pixels.sheet;
    const [dark, light] = scheme.map((colour) => colour.split(",").map(Number));
    const sheet = element("canvas", { width: columns, height: rows });
    const pen = sheet.getContext("2d");
    const image = pen.createImageData(columns, rows);
    flat.forEach((value, index) => {
      const share = Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
      image.data.set([...light.map((from, n) => Math.round(from + share * (dark[n] - from))), 255], 4 * index);
    });
    pen.putImageData(image, 0, 0);
    pixels = { scheme: scheme.join(), sheet };
    return sheet;
  }

  function draw() {
    const size = Math.min(460, root.clientWidth || 320);
    const scale = window.devicePixelRatio || 1;
    const step = Math.min((size - MARGIN.left - 2) / columns, (size - MARGIN.top - 2) / rows);
    canvas.style.width = `${MARGIN.left + columns * step + 2}px`;
    canvas.style.height = `${MARGIN.top + rows * step + 2}px`;
    canvas.width = Math.ceil((MARGIN.left + columns * step + 2) * scale);
    canvas.height = Math.ceil((MARGIN.top + rows * step + 2) * scale);
    const pen = canvas.getContext("2d");
    const ink = getComputedStyle(root);
    pen.scale(scale, scale);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(coloured(ink), MARGIN.left, MARGIN.top, columns * step, rows * step);
    names(pen, pair, step, ink.getPropertyValue("--quiet"));
    pen.strokeStyle = ink.getPropertyValue("--accent");
    pen.lineWidth = 2;
    if (active) {
      if (active.side === "q") pen.strokeRect(MARGIN.left, MARGIN.top + active.region * step, columns * step, step);
      else pen.strokeRect(MARGIN.left + active.region * step, MARGIN.top, step, rows * step);
    }
    if (entry) pen.strokeRect(MARGIN.left + entry.g * step, MARGIN.top + entry.q * step, step, step);
  }

  function point(event) {
    const box = canvas.getBoundingClientRect();
    const step = (box.width - MARGIN.left - 2) / columns;
    const g = Math.floor((event.clientX - box.x - MARGIN.left) / step);
    const q = Math.floor((event.clientY - box.y - MARGIN.top) / step);
    onPoint(q >= 0 && q < rows && g >= 0 && g < columns ? { q, g } : null);
  }
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", () => onPoint(null));

  /** @param {import("./stage.js").View} view */
  function paint(view) {
    entry = view.pairOf;
    active = view.active;
    readout.textContent = entry ? entryText(pair, entry) + (what === "reduced" ? `; reduced cost ${signed(values[entry.q][entry.g])}` : "") : idle;
    draw();
  }
  return { root, paint };
}

/** One entry of the ledger in words. */
export function entryText(pair, { q, g }) {
  const [mass, cosine] = [pair.plan[q][g], pair.cosine[q][g]];
  const names = `${cellName(q, pair.grid_q)} \u2192 ${cellName(g, pair.grid_g)}`;
  return `${names}: mass ${signed(mass, 5)} \u00d7 cosine ${signed(cosine, 3)} = contribution ${signed(mass * cosine, 5)}`;
}

/** Names at the beginnings of the rows of each grid, as many as fit. */
function names(pen, pair, step, colour) {
  pen.fillStyle = colour;
  pen.font = "11px system-ui, sans-serif";
  for (const side of ["q", "g"]) {
    const [grid, count] = [pair[`grid_${side}`], pair[`weight_${side}`].length];
    const stride = grid && grid[0] > 1 ? grid[1] : 1;
    const skip = stride * Math.max(1, Math.ceil((side === "q" ? 14 : 26) / (stride * step)));
    for (let region = 0; region < count; region += skip) {
      const at = (region + 0.5) * step;
      pen.textAlign = side === "q" ? "right" : "center";
      pen.textBaseline = side === "q" ? "middle" : "alphabetic";
      if (side === "q") pen.fillText(cellName(region, grid), MARGIN.left - 5, MARGIN.top + at);
      else pen.fillText(cellName(region, grid), MARGIN.left + at, MARGIN.top - 5);
    }
  }
  pen.textAlign = "left";
  pen.fillText("gallery region \u2192", MARGIN.left + 14, 11);
  pen.fillText("query \u2193", 0, 11);
}
