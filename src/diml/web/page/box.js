/** A box on the query: drawn with mouse or finger, or given in numbers. Edges are fractions of the displayed image. */

import { element, freshId } from "./dom.js";

const LEAST = 16; // pixels of the image, as the server needs them
const EDGES = [["left", "Left"], ["upper", "Top"], ["right", "Right"], ["lower", "Bottom"]];

/** @param {string} text @returns {number[] | null} the four fractions of "x0,y0,x1,y1" */
export function readBox(text) {
  const edges = text.split(",").map(Number);
  const sound = edges.length === 4 && edges.every((edge) => edge >= 0 && edge <= 1) && edges[0] < edges[2] && edges[1] < edges[3];
  return text && sound ? edges : null;
}

/** @param {number[]} edges */
const writeBox = (edges) => edges.map((edge) => Number(edge.toFixed(4))).join(",");

/**
 * The query with the box on it.
 * @param {(box: string) => void} onBox  called with "x0,y0,x1,y1", or "" for the whole image
 */
export function makeBox(onBox) {
  const image = element("img", { alt: "", draggable: "false" });
  const marked = element("div", { class: "marked", hidden: true });
  const frame = element("div", { class: "box-frame" }, image, marked);
  const draw = element("button", { type: "button", class: "draw", "aria-pressed": "false" }, "Mark a part");
  const whole = element("button", { type: "button", hidden: true }, "Whole image");
  const said = element("p", { class: "hint", role: "status" });
  const fields = EDGES.map(([, words]) => {
    const id = freshId("edge");
    const input = element("input", { type: "number", id, min: 0, max: 100, step: "any" });
    return { input, label: element("label", { for: id }, words, input) };
  });
  const apply = element("button", { type: "submit" }, "Search for this part");
  const form = element("form", {}, ...fields.map(({ label }) => label), apply);
  const numbers = element("details", { class: "edges" }, element("summary", {}, "In numbers (%)"), form);
  const root = element("section", { class: "box", "aria-label": "Part of the image", hidden: true }, frame, element("p", { class: "box-actions" }, draw, whole), said, numbers);
  let edges = null;
  let start = null;

  /** Show a box that is being drawn, or the one that is searched for. @param {number[] | null} shown */
  function show(shown) {
    marked.hidden = !shown;
    if (shown) {
      const [left, upper, right, lower] = shown.map((edge) => 100 * edge);
      marked.style.cssText = `left:${left}%;top:${upper}%;width:${right - left}%;height:${lower - upper}%`;
    }
    fields.forEach(({ input }, place) => (input.value = String(Number((100 * (shown ?? [0, 0, 1, 1])[place]).toFixed(1)))));
  }
  /** @param {number[]} chosen */
  function choose(chosen) {
    const [width, height] = [image.naturalWidth || Infinity, image.naturalHeight || Infinity];
    if (!((chosen[2] - chosen[0]) * width >= LEAST) || !((chosen[3] - chosen[1]) * height >= LEAST)) {
      said.textContent = `Draw a larger box: at least ${LEAST} pixels of the image in each direction.`;
      show(edges);
      return;
    }
    said.textContent = "";
    onBox(writeBox(chosen));
  }
  const at = (event) => {
    const around = image.getBoundingClientRect();
    return [(event.clientX - around.left) / around.width, (event.clientY - around.top) / around.height].map((one) => Math.min(1, Math.max(0, one)));
  };
  const between = (one, other) => [Math.min(one[0], other[0]), Math.min(one[1], other[1]), Math.max(one[0], other[0]), Math.max(one[1], other[1])];
  const drawing = () => draw.getAttribute("aria-pressed") === "true";
  const turn = (on) => draw.setAttribute("aria-pressed", String(on));
  draw.addEventListener("click", () => {
    turn(!drawing());
    said.textContent = drawing() ? "Drag across the part that you are looking for." : "";
  });
  frame.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || (event.pointerType === "touch" && !drawing())) return; // a finger scrolls, unless it was told to draw
    event.preventDefault();
    frame.setPointerCapture(event.pointerId);
    start = at(event);
  });
  frame.addEventListener("pointermove", (event) => start && show(between(start, at(event))));
  frame.addEventListener("pointerup", (event) => {
    if (!start) return;
    const drawn = between(start, at(event));
    start = null;
    turn(false);
    choose(drawn);
  });
  frame.addEventListener("pointercancel", () => {
    start = null;
    show(edges);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !(start || drawing())) return;
    start = null;
    turn(false);
    said.textContent = "";
    show(edges);
  });
  whole.addEventListener("click", () => onBox(""));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = fields.map(({ input }) => Number(input.value) / 100);
    if (readBox(given.join(","))) choose(given);
    else said.textContent = "The edges have to be from 0 to 100, left before right and top before bottom.";
  });
  image.addEventListener("error", () => (frame.hidden = true)); // of a format that the browser does not show; numbers remain

  /** @param {string | null} src  of the whole query; null for none @param {string} name @param {string} box */
  function paint(src, name, box) {
    root.hidden = src === null;
    if (src !== null && image.getAttribute("src") !== src) {
      frame.hidden = false;
      image.src = src;
    }
    image.alt = `The whole query: ${name}. Drag to mark a part of it.`;
    edges = readBox(box);
    whole.hidden = !edges;
    said.textContent = "";
    show(edges);
  }
  return { root, paint };
}
