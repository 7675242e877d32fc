/** The page of an evaluation: metrics, then queries with their hits before and after re-ranking. */

import { element } from "./dom.js";
import { mountExplanation, verdictOf } from "./hits.js";
import { hitName, percent, signed } from "./numbers.js";

/**
 * @typedef {Object} ReportQuery
 * @property {string} name
 * @property {string} label  its class
 * @property {number} image  row of `ReportData.images`
 * @property {import("./numbers.js").Pair[]} pairs  with its hits, best score first
 * @property {number[]} before  rows of `pairs` in the order by pooled cosine
 * @property {number[]} after  rows of `pairs` in the order after re-ranking
 * @property {number} map_before  MAP@R, a fraction
 * @property {number} map_after
 * @property {{likely: boolean, sentence: string} | null} in_gallery  with a calibration
 * @property {string[]} notices  what has to be said of the numbers
 *
 * @typedef {Object} ReportData
 * @property {{name: string, values: Object<string, [number, number, number]>}[]} table  value, low, high as fractions
 * @property {Object<string, [number, number, number]>} differences  re-ranked minus plain
 * @property {{queries: number, gallery: number, shown: number}} counts
 * @property {"worst" | "changed" | "random"} choose  how the queries were selected
 * @property {string | null} calibration  where probabilities come from
 * @property {number} rerank_at  K, the number of re-ranked hits
 * @property {import("./numbers.js").Image[]} images
 * @property {ReportQuery[]} queries
 * @property {Object<string, string | number | boolean | null>} settings
 */

const CHOSEN = {
  worst: "the worst after re-ranking, which are not representative of the average",
  changed: "those that re-ranking changed most, for better or worse",
  random: "a random sample, the worst first",
};

/** @param {HTMLElement} root @param {ReportData} data */
export function mountReport(root, data) {
  const { counts } = data;
  const words = `${counts.queries.toLocaleString("en")} queries, ${counts.gallery.toLocaleString("en")} gallery images. Below are ${counts.shown} queries: ${CHOSEN[data.choose]}. Select a hit to see its explanation.`;
  root.replaceChildren(metricsOf(data), element("p", {}, words), ...data.queries.map((query, index) => queryCard(data, query, index)));
}

/** The table of metrics, in percent with 95 % intervals. @param {ReportData} data */
function metricsOf({ table, differences }) {
  const titles = Object.keys(table[0].values);
  const head = ["method", ...titles].map((title) => element("th", { scope: "col" }, title));
  const rows = table.map(({ name, values }) => metricRow(name, titles.map((title) => values[title]), (value) => signed(100 * value, 2)));
  if (Object.keys(differences).length) {
    const plus = (value) => (value > 0 ? "+" : "") + signed(100 * value, 2);
    rows.push(metricRow("difference, paired", titles.map((title) => differences[title]), plus));
  }
  const caption = element("caption", {}, "Percent, with 95\u202f% bootstrap intervals over queries");
  return element("div", { class: "wide" }, element("table", { class: "metrics" }, caption, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)));
}

function metricRow(name, values, write) {
  const cells = values.map(([value, low, high]) =>
    element("td", {}, element("b", {}, write(value)), " ", element("span", { class: "interval" }, `${write(low)} to ${write(high)}`)),
  );
  return element("tr", {}, element("th", { scope: "row" }, name), ...cells);
}

/** One query: its image, its hits before and after re-ranking, and the explanation of the selected hit. */
function queryCard(data, query, index) {
  const opened = element("div", { class: "opened" });
  const close = element("button", { type: "button", class: "more" }, "Close the explanation");
  let viewer = null;
  const shut = () => {
    viewer?.stop();
    viewer = null;
    opened.replaceChildren();
    buttons.forEach((button) => button.setAttribute("aria-expanded", "false"));
  };
  const show = (pair, button) => {
    shut();
    const box = element("div");
    opened.replaceChildren(box, close);
    viewer = mountExplanation(box, { images: data.images, pairs: query.pairs, settings: data.settings }, pair);
    button.setAttribute("aria-expanded", "true");
  };
  close.addEventListener("click", () => {
    const last = buttons.find((button) => button.getAttribute("aria-expanded") === "true");
    shut();
    last?.focus();
  });
  const strips = [
    ["before re-ranking", query.before],
    [`after re-ranking the best ${data.rerank_at}`, query.after],
  ].map(([words, order]) => stripOf(data, query, words, order, show));
  const buttons = strips.flatMap((strip) => [...strip.querySelectorAll("button")]);
  const { src, width, height } = data.images[query.image];
  const image = element("img", { src, width, height, alt: `Query ${query.name}`, loading: "lazy" });
  const change = `MAP@R ${signed(100 * query.map_before, 1)} \u2192 ${signed(100 * query.map_after, 1)}\u202f%`;
  const self = element("div", { class: "query-image" }, image, element("b", {}, query.label), element("span", { class: "name" }, query.name), element("span", {}, change));
  const title = element("h2", {}, `Query ${index + 1}: ${query.label}`);
  return element("article", { class: "query-card" }, title, ...saidOf(query), element("div", { class: "both" }, self, element("div", { class: "strips" }, ...strips)), opened);
}

/** Whether the query is in the gallery at all, and what has to be said of the numbers; with a calibration. */
function saidOf({ in_gallery: verdict, notices }) {
  return [...(verdict ? [verdict.sentence] : []), ...notices].map((words) => element("p", { class: "hint" }, words));
}

/** How likely a hit is of the query's class. @param {import("./numbers.js").HitFacts & {probability: number | null}} hit */
function chanceOf({ probability }) {
  return probability === null ? [] : [element("span", { class: "likely" }, element("b", {}, percent(probability)), " likely")];
}

function stripOf(data, query, words, order, show) {
  const buttons = order.map((row, place) => {
    const pair = query.pairs[row];
    const { src, width, height } = data.images[pair.images.gallery];
    const image = element("img", { src, width, height, alt: "", loading: "lazy" });
    const right = pair.hit.correct ? "right" : "wrong";
    const lines = [element("span", {}, element("b", {}, String(place + 1)), " ", verdictOf(pair.hit)), ...chanceOf(pair.hit), element("span", { class: "name" }, pair.hit.note)];
    const label = `${words}, place ${place + 1}: ${right}, ${pair.hit.note}; explain`;
    const button = element("button", { type: "button", class: `hit ${right}`, "aria-expanded": "false", "aria-label": label, "data-pair": row, title: hitName(pair.hit) }, image, ...lines);
    button.addEventListener("click", () => show(row, button));
    return button;
  });
  return element("div", { role: "group", "aria-label": words }, element("p", { class: "hint" }, words), element("div", { class: "hits" }, ...buttons));
}
