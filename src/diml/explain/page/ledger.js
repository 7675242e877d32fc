/** The ledger: every pair of regions with mass, cosine and contribution, as a sortable table. */

import { element } from "./dom.js";
import { cellName, colourOf, decimals, inkOn, signed } from "./numbers.js";

const ROWS = 20; // at first; "Show more" adds five times as many
/** @type {[string, string, number][]} key, title, direction when first selected */
const COLUMNS = [
  ["rank", "#", 1],
  ["q", "query", 1],
  ["g", "gallery", 1],
  ["mass", "mass", -1],
  ["cosine", "cosine", -1],
  ["contribution", "contribution", -1],
];

/**
 * @param {import("./numbers.js").Pair} pair
 * @param {import("./numbers.js").Flow[]} flows  all, largest contribution first
 * @param {{point: (entry: {q: number, g: number} | null) => void, pin: (at: import("./numbers.js").Region) => void}} on
 */
export function makeLedger(pair, flows, on) {
  const state = { key: "rank", direction: 1, shown: ROWS, only: null };
  const heads = COLUMNS.map(([key, title, first]) => {
    const button = element("button", { type: "button", "aria-label": key === "rank" ? "rank" : title }, title);
    button.addEventListener("click", () => {
      state.direction = state.key === key ? -state.direction : first;
      state.key = key;
      fill();
    });
    return element("th", { scope: "col", "data-key": key }, button);
  });
  const caption = element("caption");
  const body = element("tbody");
  const foot = element("tfoot");
  const table = element("table", { class: "ledger" }, caption, element("thead", {}, element("tr", {}, ...heads)), body, foot);
  const more = element("button", { type: "button", class: "more" }, "Show more");
  more.addEventListener("click", () => {
    state.shown += 5 * ROWS;
    fill();
  });
  const digits = decimals(flows[0].contribution);

  function fill() {
    const all = state.only ? flows.filter((flow) => flow[state.only.side] === state.only.region) : flows;
    const sorted = [...all].sort((one, other) => state.direction * (one[state.key] - other[state.key]) || one.rank - other.rank);
    const rows = sorted.slice(0, state.shown);
    body.replaceChildren(...rows.map((flow) => rowOf(pair, flow, digits)));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    const at = COLUMNS.findIndex(([key]) => key === state.key);
    heads[at].setAttribute("aria-sort", state.direction > 0 ? "ascending" : "descending");
    more.hidden = rows.length === all.length;
    caption.textContent = captionOf(pair, state.only, all.length);
    foot.replaceChildren(...sums(pair, state.only, all.length - rows.length, rows, digits));
  }

  const entryAt = (event) => {
    const row = event.target.closest("tbody tr");
    return row && { q: Number(row.dataset.q), g: Number(row.dataset.g) };
  };
  body.addEventListener("pointerover", (event) => on.point(entryAt(event)));
  body.addEventListener("pointerleave", () => on.point(null));
  body.addEventListener("click", (event) => entryAt(event) && on.pin({ side: "q", region: entryAt(event).q }));

  /** Show the rows of one region, or all. @param {import("./stage.js").View} view */
  function paint(view) {
    const only = view.pinned ? view.active : null;
    if (only?.side !== state.only?.side || only?.region !== state.only?.region || !body.childElementCount) {
      state.only = only;
      state.shown = ROWS;
      fill();
    }
    for (const row of body.children) {
      row.classList.toggle("pointed", Number(row.dataset.q) === view.pairOf?.q && Number(row.dataset.g) === view.pairOf?.g);
    }
  }
  return { root: element("div", { class: "ledger-box" }, table, more), paint };
}

function rowOf(pair, flow, digits) {
  const colour = colourOf(flow.rank);
  const chip = element("span", { class: "chip" }, String(flow.rank + 1));
  if (flow.rank < 30) chip.style.cssText = `background:${colour};color:${inkOn(colour)}`;
  return element(
    "tr",
    { "data-q": flow.q, "data-g": flow.g },
    element("td", {}, chip),
    element("td", {}, cellName(flow.q, pair.grid_q)),
    element("td", {}, cellName(flow.g, pair.grid_g)),
    element("td", {}, signed(flow.mass, digits)),
    element("td", {}, signed(flow.cosine, 3)),
    element("td", {}, signed(flow.contribution, digits)),
  );
}

function captionOf(pair, only, count) {
  if (!only) return `All ${count.toLocaleString("en")} pairs of regions: mass \u00d7 cosine = contribution`;
  const role = only.side === "q" ? "query" : "gallery";
  return `Only region ${cellName(only.region, pair[`grid_${only.side}`])} of the ${role} image; unpin it to show all`;
}

/** The remaining entries, and the sum of all: the structural score, or the total of one region. */
function sums(pair, only, others, rows, digits) {
  const total = only ? pair[`total_${only.side}`][only.region] : pair.structural;
  const rest = rows.reduce((left, flow) => left - flow.contribution, total);
  const line = (words, value) =>
    element("tr", {}, element("th", { scope: "row", colspan: 5 }, words), element("td", {}, signed(value, digits)));
  const last = line(only ? "the region\u2019s total" : "structural", total);
  return others ? [line(`${others.toLocaleString("en")} others`, rest), last] : [last];
}
