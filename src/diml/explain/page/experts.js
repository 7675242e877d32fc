/**
 * The viewer of an explanation: why two images have the score that they have.
 *
 * Hovering, tapping or focusing a region highlights the regions of the other image that it exchanges mass with. A
 * click pins it, Escape unpins it. `mountViewer` takes data and an element: a page in one file and a web application
 * use the same code.
 */

import { element, freshId } from "./dom.js";
import { makeLedger } from "./ledger.js";
import { entryText, makeMatrix } from "./matrix.js";
import { cellName, decimals, flowsOf, lineOf, percent, scoreTerms, shortName, signed, structuralWeight } from "./numbers.js";
import { idleRange, makeStage } from "./stage.js";

const LINES = { first: 6, most: 30 };
const TABS = [
  ["weights", "Weights"],
  ["plan", "Plan"],
  ["cosine", "Cosine"],
];

/**
 * Display one pair of an explanation in an element, replacing its content.
 * @param {HTMLElement} root
 * @param {import("./numbers.js").Explanation} data
 * @param {number} [which]  row of `data.pairs`
 * @returns {{stop: () => void}}  `stop` removes the listeners outside the element
 */
export function mountViewer(root, data, which = 0) {
  const pair = data.pairs[which];
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
  const slider = makeSlider(useful, state.count, (count) => change({ count }));
  const tabs = makeTabs(pair, on, (tab) => change({ tab }));
  const details = element("div", { class: "details", role: "status", "aria-live": "polite" });
  const lower = element("div", { class: "lower" }, tabs.root, details);
  root.classList.add("diml-viewer");
  root.replaceChildren(scoreOf(pair), stage.root, slider.root, lower, ledger.root, aboutOf(data, pair));

  function change(changes) {
    Object.assign(state, changes);
    const active = state.pinned ?? state.hovered;
    const view = { tab: state.tab, digits, pinned: state.pinned !== null, active, pairOf: state.pairOf, lines: linesOf(useful, active, state) };
    root.toggleAttribute("data-pinned", view.pinned);
    stage.paint(view);
    ledger.paint(view);
    tabs.paint(view);
    slider.paint(view.lines, active, pair);
    details.replaceChildren(...detailsOf(pair, view));
  }
  const release = (event) => event.key === "Escape" && state.pinned && change({ pinned: null, hovered: null });
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const again = () => change({});
  document.addEventListener("keydown", release);
  scheme.addEventListener("change", again);
  change({});
  return {
    stop() {
      stage.stop();
      document.removeEventListener("keydown", release);
      scheme.removeEventListener("change", again);
    },
  };
}

const same = (one, other) => one?.side === other?.side && one?.region === other?.region;

/** The flows that are drawn: the entry under the pointer, else the largest of the active region, else of all. */
function linesOf(useful, active, { pairOf, count }) {
  if (pairOf) return useful.filter((flow) => flow.q === pairOf.q && flow.g === pairOf.g);
  return (active ? useful.filter((flow) => flow[active.side] === active.region) : useful).slice(0, count);
}

/** The score as a sum, in words and as a bar. */
function scoreOf(pair) {
  const titles = { pooled: "cosine of the pooled vectors of the two images", structural: "sum over all pairs of regions" };
  const terms = scoreTerms(pair);
  const words = terms.flatMap(({ name, text }, number) => [number ? " + " : " = ", element("span", { class: name, title: titles[name] }, text)]);
  const bars = terms.map(({ name, value }) => {
    const bar = element("span", { class: name });
    bar.style.flexGrow = String(Math.max(value, 0));
    return bar;
  });
  const leftOut = structuralWeight(pair) === Infinity ? ` (pooled ${signed(pair.pooled)} not counted)` : "";
  const sum = element("p", { class: "sum" }, element("strong", {}, `score ${signed(pair.score)}`), ...words, leftOut);
  const { converged, marginal_error: error, iterations } = pair.convergence;
  const warning = `Not converged: marginal error ${error.toExponential(1)} after ${iterations} iterations; raise max_iterations or epsilon before trusting details.`;
  const bar = element("div", { class: "bar", "aria-hidden": "true" }, ...bars);
  const remarks = [...(pair.note ? [pair.note] : []), ...(converged ? [] : [warning])];
  return element("div", { class: "score" }, sum, bar, ...remarks.map((text) => element("p", { class: "warning" }, text)));
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
    weights: weightsPanel(pair),
    plan: makeMatrix(pair, "plan", on.point),
    cosine: makeMatrix(pair, "cosine", on.point),
  };
  const ids = Object.fromEntries(TABS.map(([name]) => [name, freshId(name)]));
  const buttons = TABS.map(([name, title]) =>
    element("button", { type: "button", role: "tab", id: ids[name], "data-tab": name, "aria-controls": `${ids[name]}-panel` }, title),
  );
  const boxes = TABS.map(([name]) =>
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
    TABS.forEach(([name], index) => {
      const chosen = name === view.tab;
      buttons[index].setAttribute("aria-selected", String(chosen));
      buttons[index].tabIndex = chosen ? 0 : -1;
      boxes[index].hidden = !chosen;
    });
    panels[view.tab].paint(view);
  };
  return { root: element("div", { class: "tabs" }, list, ...boxes), paint };
}

function weightsPanel(pair) {
  const [low, high] = idleRange(pair, "weights");
  const scale = element("div", { class: "scale" }, element("span", {}, percent(low)), element("i"), element("span", {}, percent(high)));
  const words = "Bright regions have a larger weight, that is a larger share of the mass. Both images share one scale.";
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
  const order = masses.map((_, region) => region).sort((one, next) => masses[next] - masses[one]).slice(0, 6);
  const name = cellName(active.region, pair[`grid_${own}`]);
  const direction = own === "q" ? "sends" : "receives";
  const total = pair[`total_${own}`][active.region];
  const title = element("h3", {}, `${name} of the ${own === "q" ? "query" : "gallery"} image`, ...(view.pinned ? [element("span", { class: "pin" }, "pinned")] : []));
  const summary = `It ${direction} ${percent(weight)} of the mass and contributes ${signed(total, view.digits)} to the structural score:`;
  const head = [own === "q" ? "to" : "from", "share", "mass", "cosine", "contribution"].map((word) => element("th", { scope: "col" }, word));
  const rows = order.map((region) => {
    const values = [percent(weight > 0 ? masses[region] / weight : 0), signed(masses[region], view.digits), signed(cosines[region]), signed(masses[region] * cosines[region], view.digits)];
    const cells = values.map((value) => element("td", {}, value));
    return element("tr", { "data-region": region }, element("th", { scope: "row" }, cellName(region, pair[`grid_${other}`])), ...cells);
  });
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  return [title, element("p", {}, summary), table];
}

/** How to read the page, what it does not say, and the settings. */
function aboutOf(data, pair) {
  const words = [
    `${scoreWords(structuralWeight(pair))} Each pair of regions contributes mass \u00d7 cosine: the mass transported from one to the other, times the cosine of their features.`,
    "A strong line means that the model\u2019s features of two regions are similar and that the plan assigns mass to the pair. It does not mean that the region causes the score, nor that the model recognises what is shown there. The features of a region also depend on its surroundings.",
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

/** The heading of the page of an explanation. @param {import("./numbers.js").Explanation} data */
export function titleOf(data) {
  const { query, gallery } = data.pairs[0].names;
  return data.pairs.length > 1 ? `${shortName(query)} and its hits` : `${shortName(query)} and ${shortName(gallery)}`;
}
