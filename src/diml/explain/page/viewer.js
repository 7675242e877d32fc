/**
 * The viewer of an explanation: why two images have the score that they have.
 *
 * It opens with the view for everybody: outlined parts and their shares. One click, or the key `e`, leads to the view for
 * experts. `mountViewer` takes data and an element: a page in one file and a web application use the same code.
 */

import { element, freshId } from "./dom.js";
import { makeExperts } from "./experts.js";
import { rateText, signed } from "./numbers.js";
import { makePartImages, makePartList } from "./parts.js";
import { makeScale } from "./scale.js";
import { isOn, turn, watchState } from "./state.js";

/**
 * Display one pair of an explanation in an element, replacing its content.
 * @param {HTMLElement} root
 * @param {import("./numbers.js").Explanation} data
 * @param {number} [which]  row of `data.pairs`
 * @returns {{stop: () => void}}  `stop` removes the listeners outside the element
 */
export function mountViewer(root, data, which = 0) {
  const pair = data.pairs[which];
  const everybody = makeEverybody(pair, data.images);
  const box = element("div");
  const toggle = element("button", { type: "button", class: "switch", "aria-keyshortcuts": "e" });
  toggle.addEventListener("click", () => turn("experts", !isOn("experts")));
  let experts = null;
  root.classList.add("diml-viewer");
  root.replaceChildren(headOf(pair, toggle), box);

  function show() {
    const wanted = isOn("experts");
    if (wanted && !experts) experts = makeExperts(data, pair); // only now, as a fine grid has thousands of elements
    const view = wanted ? experts : everybody;
    if (box.firstChild !== view.root) box.replaceChildren(view.root);
    toggle.replaceChildren(wanted ? "Simple view" : "Details for experts", " ", element("kbd", {}, "e"));
    toggle.setAttribute("aria-pressed", String(wanted));
    view.refresh();
  }
  const unwatch = watchState(show);
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", show);
  show();
  return {
    stop() {
      everybody.stop();
      experts?.stop();
      unwatch();
      scheme.removeEventListener("change", show);
    },
  };
}

/** How similar, how sure, and on what scale; for both views. */
function headOf(pair, toggle) {
  const { summary } = pair;
  const words = element(
    "div",
    { class: "verdict-words" },
    element("p", { class: "headline" }, summary.headline),
    element("p", { class: "sentence" }, summary.sentence),
    ...(summary.threshold ? [element("p", { class: "threshold" }, thresholdText(summary.threshold))] : []),
    ...summary.warnings.map((text) => element("p", { class: "warning" }, text)),
    ...summary.hints.map((text) => element("p", { class: "hint" }, text)),
  );
  return element("header", { class: "head" }, words, element("div", { class: "beside" }, toggle, makeScale(summary)));
}

function thresholdText({ score, false_accept_rate: rate, above }) {
  return `${above ? "Above" : "Below"} the threshold ${signed(score, 2)}, which ${rateText(rate)} of different pairs reach.`;
}

/** The view for everybody. */
function makeEverybody(pair, images) {
  const state = { hovered: null, pinned: null };
  const on = {
    look: (part) => change({ hovered: part }),
    pin: (part) => change(part === state.pinned ? { pinned: null, hovered: null } : { pinned: part }),
  };
  const sides = makePartImages(pair, images, on);
  const list = makePartList(pair, images, on);
  const id = freshId("overlay");
  const box = element("input", { type: "checkbox", id });
  box.addEventListener("change", () => turn("overlay", box.checked));
  const known = pair.grid_q && pair.grid_g;
  const unknown = "The position of the regions in the images is not known, so that the parts cannot be outlined.";
  const control = known ? element("p", { class: "overlay" }, box, element("label", { for: id }, "Colour the parts")) : element("p", { class: "hint" }, unknown);
  const root = element("div", { class: "everybody" }, element("div", { class: "shown" }, sides.root, control), list.root);

  function change(changes) {
    Object.assign(state, changes);
    box.checked = isOn("overlay");
    const view = { active: state.pinned ?? state.hovered, pinned: state.pinned, overlay: box.checked };
    sides.paint(view);
    list.paint(view);
  }
  const release = (event) => event.key === "Escape" && change({ pinned: null, hovered: null });
  document.addEventListener("keydown", release);
  return {
    root,
    refresh: () => change({}),
    stop() {
      sides.stop();
      document.removeEventListener("keydown", release);
    },
  };
}
