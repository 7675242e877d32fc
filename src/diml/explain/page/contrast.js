/** Why one hit ranks above another: the difference of their scores, region by region of the query. */

import { element, freshId } from "./dom.js";
import { capital, cellName, decimals, hitName, largestOf, scoreOfHit, shortName, signed, structuralName, structuralWeight, wholeTotals } from "./numbers.js";
import { regionGrid } from "./stage.js";

const REGIONS_SHOWN = 12;

/**
 * The difference of the scores of two pairs of one query. Where the pooled cosine of both is divided among regions, the
 * differences of the regions sum to that of the score; else to that of the structural score.
 * @param {import("./numbers.js").Pair} above @param {import("./numbers.js").Pair} below
 */
export function contrastOf(above, below) {
  const whole = [above, below].map((pair) => wholeTotals(pair, "q"));
  const divided = whole[0] !== null && whole[1] !== null;
  const [one, other] = divided ? whole : [above.total_q, below.total_q];
  return {
    divided,
    score: above.score - below.score,
    pooled: above.pooled - below.pooled,
    structural: above.structural - below.structural,
    totals: [one, other],
    regions: one.map((total, region) => total - other[region]),
  };
}

/** A number with its sign. @param {number} value @param {number} digits */
export function difference(value, digits = 3) {
  const text = signed(value, digits);
  return value > 0 && Number(value.toFixed(digits)) !== 0 ? `+${text}` : text;
}

/**
 * Two selected hits, and the parts of the difference of their scores.
 * @param {import("./numbers.js").Explanation} data  with at least two pairs
 */
export function makeContrast(data) {
  const chosen = { above: 0, below: 1 };
  const result = element("div", { class: "contrast" });
  const choices = ["above", "below"].map((which) => {
    const id = freshId(which);
    const options = data.pairs.map((pair, index) => element("option", { value: index, selected: index === chosen[which] }, optionOf(pair)));
    const select = element("select", { id, "data-which": which }, ...options);
    select.addEventListener("change", () => {
      chosen[which] = Number(select.value);
      show();
    });
    return { select, label: element("label", { for: id }, which === "above" ? "Why this" : "rather than this") };
  });
  function show() {
    result.replaceChildren(...contentOf(data, data.pairs[chosen.above], data.pairs[chosen.below]));
  }
  /** Compare a hit with the first, or the first with the second. @param {number} hit */
  function choose(hit) {
    chosen.above = 0;
    chosen.below = hit || 1;
    choices.forEach(({ select }) => (select.value = String(chosen[select.dataset.which])));
    show();
  }
  show();
  const boxes = choices.map(({ select, label }) => element("span", {}, label, " ", select));
  return { root: element("section", {}, element("h2", {}, "Why one ranks above another"), element("p", { class: "choices" }, ...boxes), result), choose };
}

function optionOf(pair) {
  return `${hitName(pair.hit)}: ${shortName(pair.names.gallery)} (${signed(scoreOfHit(pair))})`;
}

function contentOf(data, above, below) {
  const contrast = contrastOf(above, below);
  const order = contrast.regions.map((_, region) => region).sort((one, other) => Math.abs(contrast.regions[other]) - Math.abs(contrast.regions[one]));
  const digits = Math.max(4, decimals(Math.abs(contrast.regions[order[0]])));
  const rows = order.slice(0, REGIONS_SHOWN).map((region) => regionRow(above, contrast, region, digits));
  const mark = (region) => rows.forEach((row) => row.classList.toggle("pointed", Number(row.dataset.region) === region));
  const on = { look: (at) => mark(at ? at.region : null), pin: (at) => mark(at.region) };
  const labels = contrast.regions.map((value, region) => `${cellName(region, above.grid_q)}: ${difference(value, digits)}`);
  const { frame, cells } = regionGrid(data.images[above.images.query], "query", "q", above.grid_q, labels, on);
  tint(cells, contrast.regions, new Set(order.slice(0, 6)), digits);
  const head = ["region", `with ${hitName(above.hit)}`, `with ${hitName(below.hit)}`, "difference"].map((word) => element("th", { scope: "col" }, word));
  const table = element("table", { class: "experts-only" }, element("caption", {}, contrast.divided ? "Whole score of the regions of the query" : "Structural score of the regions of the query"), element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows), element("tfoot", {}, ...sumsOf(contrast, order.slice(REGIONS_SHOWN), above, below, digits)));
  table.addEventListener("pointerover", (event) => {
    const row = event.target.closest("tbody tr");
    cells.forEach((cell, region) => cell.classList.toggle("pointed", Number(row?.dataset.region ?? -1) === region));
  });
  const query = element("figure", { class: "side query" }, element("figcaption", {}, element("b", {}, "Query")), frame);
  const images = element("div", { class: "three" }, query, ...[[above, "for"], [below, "against"]].map(([pair, kind]) => hitFigure(data, pair, kind)));
  return [plainSentence(contrast, above, below), element("p", { class: "sum experts-only" }, sentenceOf(contrast, above, below)), images, table];
}

function hitFigure(data, pair, kind) {
  const { src, width, height, name } = data.images[pair.images.gallery];
  const caption = element("figcaption", {}, element("i", { class: `swatch ${kind}` }), " ", element("b", {}, capital(hitName(pair.hit))), " ", element("span", { class: "name", title: name }, shortName(name, 1)));
  return element("figure", { class: "side" }, caption, element("div", { class: "frame" }, element("img", { src, width, height, alt: `${capital(hitName(pair.hit))}, ${shortName(name)}` })));
}

/** The difference for everybody. */
function plainSentence(contrast, above, below) {
  const place = contrast.score > 0 ? "more similar than" : contrast.score < 0 ? "less similar than" : "as similar as";
  const rest = contrast.divided || structuralWeight(above) === Infinity ? "" : ` Comparing the images as a whole adds ${difference(contrast.pooled, 2)}, which cannot be divided among regions.`;
  return element("p", { class: "plain" }, `${capital(hitName(above.hit))} is ${place} ${hitName(below.hit)} by ${signed(Math.abs(contrast.score), 2)} on the common scale. `, element("i", { class: "swatch for" }), ` regions of the query that are more similar to ${hitName(above.hit)}, `, element("i", { class: "swatch against" }), ` to ${hitName(below.hit)}.${rest}`);
}

function sentenceOf(contrast, above, below) {
  const weight = structuralWeight(above);
  const structural = `${structuralName(above)} ${difference(contrast.structural, 4)}`;
  const terms = weight === Infinity ? [structural] : [`pooled ${difference(contrast.pooled, 4)}`, structural];
  const place = contrast.score > 0 ? "above" : contrast.score < 0 ? "below" : "level with";
  return `${capital(hitName(above.hit))} is ${signed(Math.abs(contrast.score), 4)} ${place} ${hitName(below.hit)}: ${terms.join(", ")}`;
}

/** Blue where a region favours the first hit, orange where it favours the second. */
function tint(cells, values, labelled, digits) {
  const most = largestOf(values.map(Math.abs), 1e-12);
  cells.forEach((cell, region) => {
    const strength = (0.8 * Math.abs(values[region])) / most;
    cell.style.backgroundColor = values[region] > 0 ? `rgba(0, 114, 178, ${strength.toFixed(3)})` : `rgba(213, 94, 0, ${strength.toFixed(3)})`;
    if (labelled.has(region)) cell.append(element("span", { class: "share" }, difference(values[region], digits)));
  });
}

function regionRow(above, contrast, region, digits) {
  const values = [...contrast.totals.map((totals) => signed(totals[region], digits)), difference(contrast.regions[region], digits)];
  const cells = values.map((value) => element("td", {}, value));
  return element("tr", { "data-region": region }, element("th", { scope: "row" }, cellName(region, above.grid_q)), ...cells);
}

/** The other regions, and the score that all sum to; with structural and pooled score where only the former is divided. */
function sumsOf(contrast, others, above, below, digits) {
  const line = (words, one, other, value) =>
    element("tr", {}, element("th", { scope: "row" }, words), ...[signed(one, digits), signed(other, digits), difference(value, digits)].map((text) => element("td", {}, text)));
  const sum = (values) => others.reduce((total, region) => total + values[region], 0);
  const rest = others.length ? [line(`${others.length} others`, ...contrast.totals.map(sum), sum(contrast.regions))] : [];
  const part = (name) => line(name, above[name], below[name], contrast[name]);
  const weight = structuralWeight(above);
  if (contrast.divided) return [...rest, part("score")];
  const weighted = line(structuralName(above), weight * above.structural, weight * below.structural, weight * contrast.structural);
  return [...rest, part("structural"), ...(weight === 1 ? [] : [weighted]), part("pooled"), part("score")];
}
