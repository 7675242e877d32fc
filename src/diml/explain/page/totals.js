/** The ledger of the whole score by region: what each region of a side accounts for. */

import { element } from "./dom.js";
import { cellName, percent, signed, structuralName, structuralWeight, wholeTotals } from "./numbers.js";

const REGION_ROWS = 16; // at first
const SIDE_TITLES = [["q", "Query"], ["g", "Gallery"]];

/**
 * @param {import("./numbers.js").Pair} pair
 * @param {import("./stage.js").Listeners} on
 */
export function makeTotals(pair, on) {
  const state = { side: "q", all: false };
  const caption = element("caption");
  const body = element("tbody");
  const foot = element("tfoot");
  const whole = structuralWeight(pair) !== Infinity && wholeTotals(pair, "q") !== null;
  const columns = ["region", "weight", structuralName(pair), ...(whole ? ["pooled", "whole score"] : [])];
  const head = element("tr", {}, ...columns.map((title) => element("th", { scope: "col" }, title)));
  const buttons = SIDE_TITLES.map(([side, title]) => {
    const button = element("button", { type: "button", "data-side": side }, title);
    button.addEventListener("click", () => {
      state.side = side;
      fill();
    });
    return button;
  });
  const more = element("button", { type: "button", class: "more" }, "Show all regions");
  more.addEventListener("click", () => {
    state.all = true;
    fill();
  });

  function fill() {
    const { side } = state;
    const rows = rowsOf(pair, side, whole);
    const shown = state.all ? rows : rows.slice(0, REGION_ROWS);
    const rest = rows.slice(shown.length);
    const sum = (some) => columns.slice(1).map((_, column) => some.reduce((total, { values }) => total + values[column], 0));
    body.replaceChildren(...shown.map(({ region, values }) => element("tr", { "data-region": region }, element("th", { scope: "row" }, cellName(region, pair[`grid_${side}`])), ...cellsOf(values))));
    const last = (words, some) => element("tr", {}, element("th", { scope: "row" }, words), ...cellsOf(sum(some)));
    foot.replaceChildren(...(rest.length ? [last(`${rest.length} others`, rest)] : []), last("sum", rows));
    more.hidden = !rest.length;
    caption.textContent = `Regions of the ${side === "q" ? "query" : "gallery image"}${whole ? `: ${structuralName(pair)} + pooled = whole score` : ""}`;
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.side === side)));
  }
  const regionAt = (event) => {
    const row = event.target.closest("tr[data-region]");
    return row && { side: state.side, region: Number(row.dataset.region) };
  };
  body.addEventListener("pointerover", (event) => on.look(regionAt(event)));
  body.addEventListener("pointerleave", () => on.look(null));
  body.addEventListener("click", (event) => regionAt(event) && on.pin(regionAt(event)));
  fill();

  /** @param {import("./stage.js").View} view */
  function paint({ active }) {
    for (const row of body.children) row.classList.toggle("pointed", active?.side === state.side && active.region === Number(row.dataset.region));
  }
  const table = element("table", {}, caption, element("thead", {}, head), body, foot);
  return { root: element("div", { class: "ledger-box totals" }, element("div", { class: "sides", role: "group", "aria-label": "Image" }, ...buttons), table, more), paint };
}

/** Weight, structural contribution times its weight, and where it is divided pooled cosine and whole score; largest first. */
function rowsOf(pair, side, whole) {
  const factor = structuralWeight(pair) === Infinity ? 1 : structuralWeight(pair);
  const totals = wholeTotals(pair, side) ?? pair[`total_${side}`];
  return pair[`weight_${side}`]
    .map((weight, region) => {
      const structural = factor * pair[`total_${side}`][region];
      return { region, by: totals[region], values: [weight, structural, ...(whole ? [totals[region] - structural, totals[region]] : [])] };
    })
    .sort((one, other) => other.by - one.by || one.region - other.region);
}

function cellsOf([weight, ...scores]) {
  return [percent(weight), ...scores.map((value) => signed(value, 4))].map((text) => element("td", {}, text));
}
