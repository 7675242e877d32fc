/** A query with its hits: select one to explain it, compare two, and see how re-ranking changed the order. */

import { difference, makeContrast } from "./contrast.js";
import { element } from "./dom.js";
import { capital, cellName, hitName, shortName, signed, structuralName } from "./numbers.js";
import { mountViewer } from "./viewer.js";

const SHOWN = 0.0005; // smaller values are written as zero

/**
 * Display an explanation in an element: a single pair, or several pairs as the hits of their query, best first.
 * @param {HTMLElement} root
 * @param {import("./numbers.js").Explanation} data
 * @param {number} [first]  row of the pair that is displayed at first
 * @param {(row: number) => void} [onChoose]  called with the row of a hit whenever it is displayed
 * @returns {{stop: () => void}}
 */
export function mountExplanation(root, data, first = 0, onChoose = () => {}) {
  if (data.pairs.length === 1 && !data.pairs[0].hit) return mountViewer(root, data);
  const viewerRoot = element("div");
  const title = element("h2");
  const contrast = data.pairs.length > 1 ? makeContrast(data) : null;
  const buttons = data.pairs.map((pair, index) => hitButton(data, pair, () => choose(index)));
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

function hitButton(data, pair, onClick) {
  const { hit } = pair;
  const { src, width, height } = data.images[pair.images.gallery];
  const image = element("img", { src, width, height, alt: "" });
  const rank = element("b", {}, hitName(hit));
  const lines = [element("span", {}, rank, " ", verdictOf(hit)), element("span", { class: "name", title: pair.names.gallery }, hit.note || shortName(pair.names.gallery, 1))];
  lines.push(element("span", {}, `score ${signed(pair.score)}`), movedOf(hit));
  const button = element("button", { type: "button", class: "hit", "aria-pressed": "false" }, image, ...lines);
  button.addEventListener("click", onClick);
  return button;
}

/** Right or wrong, as a word and a colour. @param {import("./numbers.js").HitFacts} hit */
export function verdictOf(hit) {
  if (hit.correct === null) return "";
  return element("span", { class: `verdict ${hit.correct ? "right" : "wrong"}` }, hit.correct ? "\u2713 right" : "\u2717 wrong");
}

/** The rank of a hit by the pooled cosine. @param {import("./numbers.js").HitFacts} hit */
export function movedOf({ rank, pooled_rank: before }) {
  if (before === null) return element("span", { class: "moved up" }, "\u25b2 from further down");
  if (rank === null) return element("span", { class: "moved down" }, "\u25bc further down");
  const arrow = before > rank ? "\u25b2" : before < rank ? "\u25bc" : "=";
  const kind = before > rank ? "up" : before < rank ? "down" : "same";
  return element("span", { class: `moved ${kind}` }, before === rank ? "= as pooled" : `${arrow} pooled ${before}`);
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
    const values = [signed(pair.pooled), signed(pair.structural), signed(pair.score), difference(total), up, down];
    const first = element("th", { scope: "row" }, `${hitName(pair.hit)} `, movedOf(pair.hit));
    return element("tr", {}, first, ...values.map((value) => element("td", {}, value)));
  });
  const table = element("table", { class: "moves" }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  return element("section", {}, element("h2", {}, "How re-ranking changed the order"), element("p", { class: "hint" }, words), element("div", { class: "wide" }, table));
}
