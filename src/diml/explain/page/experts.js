/**
 * The view for experts: regions, lines, plan, cosines, reduced costs and the ledger.
 *
 * Hovering, tapping or focusing a region highlights the regions of the other image that it exchanges mass with. A
 * click pins it, Escape unpins it.
 */

import { element, freshId } from "./dom.js";
import { makeLedger } from "./ledger.js";
import { entryText, makeMatrix } from "./matrix.js";
import { cellName, decimals, flowsOf, lineOf, percent, reducedCosts, scoreTerms, signed, structuralWeight, wholeTotals } from "./numbers.js";
import { makeStage } from "./stage.js";
import { makeTotals } from "./totals.js";

const LINES = { first: 6, most: 30 };
const TITLES = { weights: "Weights", whole: "Whole score", plan: "Plan", cosine: "Cosine", reduced: "Reduced costs" };

/**
 * Build the view of one pair.
 * @param {import("./numbers.js").Explanation} data
 * @param {import("./numbers.js").Pair} pair
 * @returns {{root: HTMLElement, refresh: () => void, stop: () => void}}  `refresh` draws again what depends on colours or sizes
 */
export function makeExperts(data, pair) {
  const flows = flowsOf(pair);
  const digits = Math.max(4, decimals(flows[0].contribution) + 1); // two significant digits for smaller entries too
  const useful = flows.filter((flow) => flow.contribution > 0);
  const state = { tab: "weights", count: Math.min(LINES.first, useful.length), hovered: null, pinned: null, pairOf: null };
  const on = {
    look: (at) => change({ hovered: at, pairOf: null }),
    pin: (at) => change({ pinned: same(at, state.pinned) ? null : at, hovered: same(at, state.pinned) ? null : at }),
    point: (entry) => change({ pairOf: entry }),
  };
  const stage = makeStage(pair, data.images, on);
  const ledger = makeLedger(pair, flows, on);
  const totals = makeTotals(pair, on);
  const slider = makeSlider(useful, state.count, (count) => change({ count }));
  const tabs = makeTabs(pair, on, (tab) => change({ tab }));
  const details = element("div", { class: "details", role: "status", "aria-live": "polite" });
  const lower = element("div", { class: "lower" }, tabs.root, details);
  const ledgers = element("div", { class: "ledgers" }, ledger.root, totals.root);
  const root = element("div", { class: "experts" }, scoreOf(pair), stage.root, slider.root, lower, ledgers, aboutOf(data, pair));

  function change(changes) {
    Object.assign(state, changes);
    const active = state.pinned ?? state.hovered;
    const view = { tab: state.tab, digits, pinned: state.pinned !== null, active, pairOf: state.pairOf, lines: linesOf(useful, active, state) };
    root.toggleAttribute("data-pinned", view.pinned);
    for (const panel of [stage, ledger, totals, tabs]) panel.paint(view);
    slider.paint(view.lines, active, pair);
    details.replaceChildren(...detailsOf(pair, view));
  }
  const release = (event) => event.key === "Escape" && state.pinned && change({ pinned: null, hovered: null });
  document.addEventListener("keydown", release);
  change({});
  return {
    root,
    refresh: () => change({}),
    stop() {
      stage.stop();
      document.removeEventListener("keydown", release);
    },
  };
}

const same = (one, other) => one?.side === other?.side && one?.region === other?.region;

/** The flows that are drawn: the entry under the pointer, else the largest of the active region, else of all. */
function linesOf(useful, active, { pairOf, count }) {
  if (pairOf) return useful.filter((flow) => flow.q === pairOf.q && flow.g === pairOf.g);
  return (active ? useful.filter((flow) => flow[active.side] === active.region) : useful).slice(0, count);
}

/** The score as a sum in words, and what must be said of the plan. */
function scoreOf(pair) {
  const titles = { pooled: "cosine of the pooled vectors of the two images", structural: "sum over all pairs of regions" };
  const words = scoreTerms(pair).flatMap(({ name, text }, number) => [number ? " + " : " = ", element("span", { class: name, title: titles[name] }, text)]);
  const leftOut = structuralWeight(pair) === Infinity ? ` (pooled ${signed(pair.pooled)} not counted)` : "";
  const sum = element("p", { class: "sum" }, element("strong", {}, `score ${signed(pair.score)}`), ...words, leftOut);
  const { converged, marginal_error: error, iterations } = pair.convergence;
  const unconverged = `Not converged: marginal error ${error.toExponential(1)} after ${iterations} iterations; raise max_iterations or epsilon before trusting details.`;
  const remarks = [
    ...(pair.note ? [["note", pair.note]] : []),
    ...(pair.plan_shown === pair.summary.plan ? [] : [["note", `The parts of the simple view come from the ${pair.summary.plan} plan of the same cosines and weights.`]]),
    ...(pair.summary.undivided ? [["note", `The pooled cosine is not divided among pairs of regions: ${pair.summary.undivided}.`]] : []),
    ...(converged ? [] : [["warning", unconverged]]),
  ];
  const plan = element("span", { class: "plan-kind" }, `plan: ${pair.plan_shown}`);
  return element("div", { class: "score" }, sum, plan, ...remarks.map(([kind, text]) => element("p", { class: kind }, text)));
}

function makeSlider(useful, first, onChange) {
  const id = freshId("lines");
  const most = Math.min(LINES.most, useful.length);
  const input = element("input", { type: "range", id, min: 0, max: most, value: first, step: 1 });
  const output = element("output", { for: id });
  input.addEventListener("input", () => onChange(Number(input.value)));
  const paint = (lines, active, pair) => {
    const carried = lines.reduce((sum, flow) => sum + flow.contribution, 0);
    const whole = active ? pair[`total_${active.side}`][active.region] : pair.structural;
    const name = active ? `what ${cellName(active.region, pair[`grid_${active.side}`])} contributes` : "the structural score";
    const share = whole > 0 && carried <= 1.001 * whole ? `, ${percent(carried / whole)} of ${name}` : "";
    const lineWord = lines.length === 1 ? "line" : "lines";
    output.textContent = `${lines.length} ${lineWord}: ${signed(carried, decimals(carried))}${share}`;
  };
  return { root: element("div", { class: "slider" }, element("label", { for: id }, "Largest flows"), input, output), paint };
}

/** Tabs as in the ARIA authoring guide: arrow keys move, the selected one is in the tab order. */
function makeTabs(pair, on, onChange) {
  const panels = {
    weights: shadesPanel("Regions with more mass than 1/R, an equal share, are gold, those with less are blue. The scale is the same for all images.", "of the mass"),
    ...(wholeTotals(pair, "q") ? { whole: shadesPanel("Regions that account for more than 1/R of the whole score are gold, those with less are blue. The scale is the same for all images.", "of the score") } : {}),
    plan: makeMatrix(pair, "plan", pair.plan, on.point),
    cosine: makeMatrix(pair, "cosine", pair.cosine, on.point),
    ...(pair.potentials ? { reduced: makeMatrix(pair, "reduced", reducedCosts(pair), on.point) } : {}),
  };
  const tabs = Object.keys(panels);
  const ids = Object.fromEntries(tabs.map((name) => [name, freshId(name)]));
  const buttons = tabs.map((name) =>
    element("button", { type: "button", role: "tab", id: ids[name], "data-tab": name, "aria-controls": `${ids[name]}-panel` }, TITLES[name]),
  );
  const boxes = tabs.map((name) =>
    element("div", { role: "tabpanel", id: `${ids[name]}-panel`, "aria-labelledby": ids[name] }, panels[name].root),
  );
  buttons.forEach((button) => button.addEventListener("click", () => onChange(button.dataset.tab)));
  const list = element("div", { role: "tablist", "aria-label": "Meaning of the colours" }, ...buttons);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = buttons[(buttons.indexOf(event.target) + step + buttons.length) % buttons.length];
    next.focus();
    onChange(next.dataset.tab);
    event.preventDefault();
  });
  const paint = (view) => {
    tabs.forEach((name, index) => {
      const chosen = name === view.tab;
      buttons[index].setAttribute("aria-selected", String(chosen));
      buttons[index].tabIndex = chosen ? 0 : -1;
      boxes[index].hidden = !chosen;
    });
    panels[view.tab].paint(view);
  };
  return { root: element("div", { class: "tabs" }, list, ...boxes), paint };
}

/** What the shades of the regions mean: 0 to 2/R, the same for every image. */
function shadesPanel(words, of) {
  const labels = ["0", `1/R ${of}`, "2/R or more"].map((text) => element("span", {}, text));
  const scale = element("div", { class: "shades" }, element("i"), element("div", {}, ...labels));
  return { root: element("div", {}, element("p", {}, words), scale), paint() {} };
}

/** The active region, or the entry under the pointer, in words and numbers. */
function detailsOf(pair, view) {
  if (view.pairOf) return [element("p", {}, entryText(pair, view.pairOf))];
  const { active } = view;
  if (!active) return [element("p", { class: "hint" }, "Point at a region, tap it, or reach it with Tab and the arrow keys. Enter or a click pins it, Escape unpins it.")];
  const [own, other] = active.side === "q" ? ["q", "g"] : ["g", "q"];
  const [masses, cosines] = [lineOf(pair.plan, active), lineOf(pair.cosine, active)];
  const weight = pair[`weight_${own}`][active.region];
  const order = masses.map((_, region) => region).sort((one, next) => masses[next] - masses[one] || cosines[next] - cosines[one]).slice(0, 6);
  const name = cellName(active.region, pair[`grid_${own}`]);
  const direction = own === "q" ? "sends" : "receives";
  const total = pair[`total_${own}`][active.region];
  const title = element("h3", {}, `${name} of the ${own === "q" ? "query" : "gallery"} image`, ...(view.pinned ? [element("span", { class: "pin" }, "pinned")] : []));
  const whole = structuralWeight(pair) === Infinity ? null : wholeTotals(pair, own)?.[active.region];
  const ofWhole = whole === null || whole === undefined ? "" : ` and ${signed(whole, view.digits)} to the whole score`;
  const unmatched = pair.unmatched ? `, of which ${percent(unmatchedOf(pair, active))} stays unmatched,` : "";
  const summary = `It ${direction} ${percent(weight)} of the mass${unmatched} and contributes ${signed(total, view.digits)} to the structural score${ofWhole}:`;
  const reduced = pair.potentials ? lineOf(reducedCosts(pair), active) : null;
  const columns = [own === "q" ? "to" : "from", "share", "mass", "cosine", ...(reduced ? ["reduced cost"] : []), "contribution"];
  const head = columns.map((word) => element("th", { scope: "col" }, word));
  const rows = order.map((region) => {
    const values = [percent(weight > 0 ? masses[region] / weight : 0), signed(masses[region], view.digits), signed(cosines[region]), ...(reduced ? [signed(reduced[region])] : []), signed(masses[region] * cosines[region], view.digits)];
    const cells = values.map((value) => element("td", {}, value));
    return element("tr", { "data-region": region }, element("th", { scope: "row" }, cellName(region, pair[`grid_${other}`])), ...cells);
  });
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  return [title, element("p", {}, summary), table];
}

/** The share of the mass of a region that is not transported. */
function unmatchedOf(pair, at) {
  const weight = pair[`weight_${at.side}`][at.region];
  return weight > 0 ? pair.unmatched[at.side === "q" ? "query" : "gallery"][at.region] / weight : 0;
}

/** How to read the page, what it does not say, and the settings. */
function aboutOf(data, pair) {
  const words = [
    `${scoreWords(structuralWeight(pair))} Each pair of regions contributes mass \u00d7 cosine: the mass transported from one to the other, times the cosine of their features.`,
    "A strong line means that the model\u2019s features of two regions are similar and that the plan assigns mass to the pair. It does not mean that the region causes the score, nor that the model recognises what is shown there. The features of a region also depend on its surroundings.",
    ...(pair.potentials ? ["The plan is exact: no other plan with these weights has a larger structural score. The reduced cost of two regions says how much higher their cosine would have to be before mass flowed between them; it is zero where mass flows."] : []),
  ];
  const set = Object.entries(data.settings ?? {}).filter(([, value]) => value !== null);
  const settings = set.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ");
  const summary = element("summary", {}, "How to read this");
  const paragraphs = [...words, ...(settings ? [`Settings: ${settings}.`] : [])].map((text) => element("p", {}, text));
  return element("details", { class: "about" }, summary, ...paragraphs);
}

/** What the score is made of. @param {number} weight of the structural score */
function scoreWords(weight) {
  if (weight === Infinity) return "The score is a sum over all pairs of regions (structural); the cosine of the pooled vectors is not counted.";
  const factor = weight === 1 ? "" : `${weight} times `;
  return `The score is the cosine of the pooled vectors of the two images (pooled) plus ${factor}a sum over all pairs of regions (structural).`;
}
