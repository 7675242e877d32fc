/** A query with its hits: choose one to see why, compare two, and see what re-ranking did. */

import { difference, makeContrast } from "./contrast.js";
import { element } from "./dom.js";
import { capital, cellName, hitName, shortName, signed } from "./numbers.js";
import { mountViewer } from "./viewer.js";

const SHOWN = 0.0005; // less is zero as it is written

/**
 * Show an explanation in an element: a pair as it is, several pairs as the hits of their query, best first.
 * @param {HTMLElement} root
 * @param {import("./numbers.js").Explanation} data
 * @param {number} [first]  row of the pair that is shown at first
 * @param {(row: number) => void} [onChoose]  told which hit is shown, whenever one is
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
  const image = data.images[pair.images.gallery];
  const image = element("img", { src: image.src, width: image.width, height: image.height, alt: "" });
  const rank = element("b", {}, hitName(hit));
  const lines = [element("span", {}, rank, " ", verdictOf(hit)), element("span", { class: "name", title: pair.names.gallery }, hit.note || shortName(pair.names.gallery, 1))];
  lines.push(element("span", {}, `score ${signed(pair.score)}`), movedOf(hit));
  const button = element("button", { type: "button", class: "hit", "aria-pressed": "false" }, image, ...lines);
  button.addEventListener("click", onClick);
  return button;
}

/** Right or wrong, in a word and a colour. @param {import("./numbers.js").HitFacts} hit */
export function verdictOf(hit) {
  if (hit.correct === null) return "";
  return element("span", { class: `verdict ${hit.correct ? "right" : "wrong"}` }, hit.correct ? "\u2713 right" : "\u2717 wrong");
}

/** Where a hit stood by the pooled cosine. @param {import("./numbers.js").HitFacts} hit */
export function movedOf({ rank, pooled_rank: before }) {
  if (before === null) return element("span", { class: "moved up" }, "\u25b2 from further down");
  if (rank === null) return element("span", { class: "moved down" }, "\u25bc further down");
  const arrow = before > rank ? "\u25b2" : before < rank ? "\u25bc" : "=";
  const kind = before > rank ? "up" : before < rank ? "down" : "same";
  return element("span", { class: `moved ${kind}` }, before === rank ? "= as pooled" : `${arrow} pooled ${before}`);
}

/** Which regions moved each hit up or down against the order by pooled cosine. */
function movesOf(data) {
  const words =
    "Ranking by the pooled cosine alone, then adding the structural score: a hit goes up against the others when its structural score is above their mean. The last columns name the query regions that add most and least, each less its mean over these hits.";
  const head = ["hit", "pooled", "structural", "score", "against the mean", "moved up by", "moved down by"].map((word) => element("th", { scope: "col" }, word));
  const rows = data.pairs.map((pair) => {
    const lift = pair.hit.lift.map((value, region) => ({ value, region })).sort((one, other) => other.value - one.value);
    const named = (parts) => parts.map(({ value, region }) => `${cellName(region, pair.grid_q)} ${difference(value)}`).join(", ") || "\u2013";
    const up = named(lift.filter(({ value }) => value >= SHOWN).slice(0, 3));
    const down = named(lift.filter(({ value }) => value <= -SHOWN).reverse().slice(0, 3));
    const sum = lift.reduce((total, { value }) => total + value, 0);
    const values = [signed(pair.pooled), signed(pair.structural), signed(pair.score), difference(sum), up, down];
    const first = element("th", { scope: "row" }, `${hitName(pair.hit)} `, movedOf(pair.hit));
    return element("tr", {}, first, ...values.map((value) => element("td", {}, value)));
  });
  const table = element("table", { class: "moves" }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  return element("section", {}, element("h2", {}, "What re-ranking did"), element("p", { class: "hint" }, words), element("div", { class: "wide" }, table));
}
