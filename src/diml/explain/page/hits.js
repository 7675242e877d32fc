/** A query with its hits: select one to explain it, compare two, and see how re-ranking changed the order. */

import { difference, makeContrast } from "./contrast.js";
import { element } from "./dom.js";
import { capital, cellName, hitName, percent, scoreOfHit, shareText, shortName, signed, structuralName } from "./numbers.js";
import { thumbnails } from "./parts.js";
import { mountViewer } from "./viewer.js";

const MINI_PARTS = 2; // of each hit in the list
const SHOWN = 0.0005; // smaller values are written as zero

/**
 * Display an explanation in an element: a single pair, or several pairs as the hits of their query, best first.
 * @param {HTMLElement} root
 * @param {import("./numbers.js").Explanation} data
 * @param {number} [first]  row of the pair that is displayed at first
 * @param {(row: number) => void} [onChoose]  called with the row of a hit whenever it is displayed
 * @param {(hit: import("./numbers.js").HitFacts) => HTMLElement | string} [factsOf]  what else is known of a hit
 * @returns {{stop: () => void}}
 */
export function mountExplanation(root, data, first = 0, onChoose = () => {}, factsOf = () => "") {
  if (data.pairs.length === 1 && !data.pairs[0].hit) return mountViewer(root, data);
  const viewerRoot = element("div");
  const title = element("h2");
  const contrast = data.pairs.length > 1 ? makeContrast(data) : null;
  const buttons = data.pairs.map((pair, index) => hitButton(data, pair, () => choose(index), factsOf(pair.hit)));
  let viewer = null;
  function choose(index) {
    viewer?.stop();
    viewer = mountViewer(viewerRoot, data, index);
    title.textContent = `${capital(hitName(data.pairs[index].hit))}: ${shortName(data.pairs[index].names.gallery)}`;
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(place === index)));
    contrast?.choose(index);
    onChoose(index);
  }
  const strip = element("div", { class: "hits", role: "group", "aria-label": "Hits, best first" }, ...buttons);
  root.replaceChildren(strip, title, viewerRoot, ...(contrast ? [contrast.root, movesOf(data)] : []));
  choose(first);
  return { stop: () => viewer.stop() };
}

function hitButton(data, pair, onClick, facts) {
  const { hit } = pair;
  const { src, width, height } = data.images[pair.images.gallery];
  const image = element("img", { src, width, height, alt: "" });
  const words = element("span", { class: "hit-words" }, element("span", {}, element("b", {}, hitName(hit)), " ", verdictOf(hit)), likelihoodOf(pair), movedOf(hit));
  const name = element("span", { class: "name", title: pair.names.gallery }, hit.note || shortName(pair.names.gallery, 1));
  const parts = element("span", { class: "mini-parts" }, ...pair.summary.parts.slice(0, MINI_PARTS).map((part) => miniPart(data, pair, part)));
  const button = element("button", { type: "button", class: "hit card", "aria-pressed": "false" }, image, words, name, facts, parts);
  button.addEventListener("click", onClick);
  return button;
}

/** How likely both are of one class, or without a calibration the score; experts see it in any case. */
function likelihoodOf(pair) {
  const { probability } = pair.summary;
  const score = `score ${signed(scoreOfHit(pair))}`;
  if (probability === null) return element("span", { class: "likely" }, score);
  return element("span", { class: "likely" }, element("b", {}, percent(probability)), " likely", element("span", { class: "experts-only" }, score));
}

/** One of the largest parts: both sides and its share. */
function miniPart(data, pair, part) {
  return element("span", { class: "mini-part" }, thumbnails(pair, data.images, part), element("span", {}, shareText(part.share)));
}

/** Right or wrong, as a word and a colour. @param {import("./numbers.js").HitFacts} hit */
export function verdictOf(hit) {
  if (hit.correct === null) return "";
  return element("span", { class: `verdict ${hit.correct ? "right" : "wrong"}` }, hit.correct ? "\u2713 right" : "\u2717 wrong");
}

/** How far a hit moved from its rank by the pooled cosine alone. @param {import("./numbers.js").HitFacts} hit */
export function movedOf({ rank, pooled_rank: before }) {
  if (before === null) return element("span", { class: "moved up" }, "\u25b2 from further down");
  if (rank === null) return element("span", { class: "moved down" }, "\u25bc further down");
  const arrow = before > rank ? "\u25b2" : before < rank ? "\u25bc" : "=";
  const kind = before > rank ? "up" : before < rank ? "down" : "same";
  const words = before === rank ? "= place kept" : `${arrow} from place ${before}`;
  return element("span", { class: `moved ${kind}`, title: "place before regions were compared" }, words);
}

/** Which regions moved each hit up or down relative to the order by pooled cosine. */
function movesOf(data) {
  const term = structuralName(data.pairs[0]);
  const words =
    `The order by pooled cosine alone, compared with the order by score${term === "structural" ? "" : ` (pooled + ${term})`}: a hit moves up relative to the others if its structural score is above their mean. The last columns name the query regions with the largest positive and negative differences from their mean contribution over these hits.`;
  const head = ["hit", "pooled", "structural", "score", "structural minus mean", "moved up by", "moved down by"].map((word) => element("th", { scope: "col" }, word));
  const rows = data.pairs.map((pair) => {
    const lift = pair.hit.lift.map((value, region) => ({ value, region })).sort((one, other) => other.value - one.value);
    const list = (parts) => parts.map(({ value, region }) => `${cellName(region, pair.grid_q)} ${difference(value)}`).join(", ") || "\u2013";
    const up = list(lift.filter(({ value }) => value >= SHOWN).slice(0, 3));
    const down = list(lift.filter(({ value }) => value <= -SHOWN).reverse().slice(0, 3));
    const total = lift.reduce((sum, { value }) => sum + value, 0);
    const values = [signed(pair.pooled), signed(pair.structural), signed(scoreOfHit(pair)), difference(total), up, down];
    const first = element("th", { scope: "row" }, `${hitName(pair.hit)} `, movedOf(pair.hit));
    return element("tr", {}, first, ...values.map((value) => element("td", {}, value)));
  });
  const table = element("table", { class: "moves" }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  return element("section", { class: "experts-only" }, element("h2", {}, "How re-ranking changed the order"), element("p", { class: "hint" }, words), element("div", { class: "wide" }, table));
}
