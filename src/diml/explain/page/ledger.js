/** The ledger: every pair of regions with mass, cosine and contribution, as a sortable table. */

import { element } from "./dom.js";
import { cellName, colourOf, decimals, inkOn, partColour, signed, structuralWeight } from "./numbers.js";

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
/** Where the pooled cosine is divided among pairs of regions, too. */
const WHOLE = [
  ["pooled", "pooled", -1],
  ["whole", "whole", -1],
];

/**
 * @param {import("./numbers.js").Pair} pair
 * @param {import("./numbers.js").Flow[]} flows  all, largest contribution first
 * @param {{point: (entry: {q: number, g: number} | null) => void, pin: (at: import("./numbers.js").Region) => void}} on
 */
export function makeLedger(pair, flows, on) {
  const entries = flows.map((flow) => ({ ...flow, ...wholeOf(pair, flow), part: partOf(pair, flow) }));
  const columns = [...COLUMNS, ...(pair.pooled_parts?.pairs ? WHOLE : []), ["part", "part", 1]];
  const state = { key: "rank", direction: 1, shown: ROWS, only: null };
  const heads = columns.map(([key, title, first]) => {
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
    const all = state.only ? entries.filter((flow) => flow[state.only.side] === state.only.region) : entries;
    const sorted = [...all].sort((one, other) => state.direction * (one[state.key] - other[state.key]) || one.rank - other.rank);
    const rows = sorted.slice(0, state.shown);
    body.replaceChildren(...rows.map((flow) => rowOf(pair, flow, digits)));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    const at = columns.findIndex(([key]) => key === state.key);
    heads[at].setAttribute("aria-sort", state.direction > 0 ? "ascending" : "descending");
    more.hidden = rows.length === all.length;
    caption.textContent = captionOf(pair, state.only, all.length);
    foot.replaceChildren(...sums(pair, state.only, all, rows, digits));
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

/** What an entry accounts for of the pooled cosine and of the whole score; nothing where that is not known. */
function wholeOf(pair, flow) {
  const pooled = pair.pooled_parts?.pairs?.[flow.q][flow.g];
  return pooled === undefined ? {} : { pooled, whole: pooled + structuralWeight(pair) * flow.contribution };
}

/** The part that both regions of an entry belong to, or the number after the last. */
function partOf(pair, flow) {
  const found = pair.summary.parts.find((part) => part.regions_q.includes(flow.q) && part.regions_g.includes(flow.g));
  return found?.part ?? pair.summary.parts.length + 1;
}

function rowOf(pair, flow, digits) {
  const [colour, ofPart] = [colourOf(flow.rank), partColour(flow.part)];
  const chip = element("span", { class: "chip" }, String(flow.rank + 1));
  if (flow.rank < 30) chip.style.cssText = `background:${colour};color:${inkOn(colour)}`;
  const known = flow.part <= pair.summary.parts.length;
  const part = element("span", { class: "chip" }, known ? String(flow.part) : "\u2013");
  if (known) part.style.cssText = `background:${ofPart};color:${inkOn(ofPart)}`;
  const whole = flow.whole === undefined ? [] : [signed(flow.pooled, digits), signed(flow.whole, digits)];
  const cells = [chip, cellName(flow.q, pair.grid_q), cellName(flow.g, pair.grid_g), signed(flow.mass, digits), signed(flow.cosine, 3), signed(flow.contribution, digits), ...whole, part];
  return element("tr", { "data-q": flow.q, "data-g": flow.g }, ...cells.map((cell) => element("td", {}, cell)));
}

function captionOf(pair, only, count) {
  if (!only) return `All ${count.toLocaleString("en")} pairs of regions: mass \u00d7 cosine = contribution`;
  const role = only.side === "q" ? "query" : "gallery";
  return `Only region ${cellName(only.region, pair[`grid_${only.side}`])} of the ${role} image; unpin it to show all`;
}

/** The remaining entries, and the sum of all: the structural score, or the total of one region; the whole score beside it. */
function sums(pair, only, all, rows, digits) {
  const total = only ? pair[`total_${only.side}`][only.region] : pair.structural;
  const rest = rows.reduce((left, flow) => left - flow.contribution, total);
  const whole = Boolean(pair.pooled_parts?.pairs);
  const sumOf = (entries) => ["pooled", "whole"].map((key) => entries.reduce((sum, flow) => sum + flow[key], 0));
  const line = (words, value, others) =>
    element("tr", {}, element("th", { scope: "row", colspan: 5 }, words), ...[value, ...(whole ? sumOf(others) : [])].map((one) => element("td", {}, signed(one, digits))), element("th", { "aria-hidden": "true" }));
  const names = [only ? "the region\u2019s total" : "structural", ...(whole && !only ? ["pooled, score"] : [])];
  const last = line(names.join(", "), total, all);
  const others = all.filter((flow) => !rows.includes(flow));
  return others.length ? [line(`${others.length.toLocaleString("en")} others`, rest, others), last] : [last];
}
