/** The gallery: its progress, and some of its images to start with. */

import { imageAddress } from "./api.js";
import { element, freshId } from "./dom.js";
import { shortName } from "./numbers.js";

/** Images on a page of the gallery. */
export const PAGE = 24;

/**
 * The state of the gallery in a line, with a bar while it is embedded.
 * @param {HTMLElement} root @param {import("./api.js").GalleryStatus | null} gallery
 */
export function paintGallery(root, gallery) {
  root.dataset.phase = gallery?.phase ?? "none";
  if (!gallery) {
    root.replaceChildren(element("span", { class: "quiet" }, "no gallery to search: start ", element("code", {}, "diml serve --folder DIR")));
    return;
  }
  const name = element("b", {}, gallery.name);
  if (gallery.phase === "failed") {
    root.replaceChildren(name, " ", element("span", { class: "error" }, `cannot be searched: ${gallery.error}`));
  } else if (gallery.phase === "embedding") {
    const text = `embedding ${count(gallery.done)} of ${count(gallery.total)}${leftOf(gallery)}`;
    root.replaceChildren(name, " ", element("span", {}, text), element("progress", { value: gallery.done, max: gallery.total, "aria-label": "Images embedded" }));
  } else {
    root.replaceChildren(name, ` ${count(gallery.count)} images`, ...leftOut(gallery));
  }
}

/**
 * The model and its calibration in a line; or why there are no probabilities.
 * @param {HTMLElement} root @param {import("./api.js").Status} status
 */
export function paintModel(root, { model, calibration, calibration_notice: notice }) {
  const name = element("span", { title: model }, "model ", element("b", {}, shortName(model)));
  root.replaceChildren(name, ", ", ...calibrationOf(calibration, notice));
}

function calibrationOf(calibration, notice) {
  if (calibration) {
    const title = `${calibration.place}: ${count(calibration.images)} images, ${calibration.pairs} pairs`;
    const words = element("span", { title }, `calibrated on ${calibration.data} (${count(calibration.classes)} classes)`);
    return calibration.separates ? [words] : [words, element("span", { class: "error" }, "; it hardly tells these classes apart")];
  }
  if (!notice) return [element("span", { class: "quiet" }, "not calibrated: scores, no probabilities")];
  return [element("details", { class: "left-out" }, element("summary", {}, "not calibrated"), element("p", {}, notice))];
}

/** @param {number} number */
function count(number) {
  return number.toLocaleString("en");
}

/** The estimated remaining time, once there is an estimate. */
function leftOf({ done, total, seconds }) {
  if (!done || done === total || seconds < 2) return "";
  const left = (seconds / done) * (total - done);
  return `, about ${left < 90 ? `${Math.ceil(left)} s` : `${Math.ceil(left / 60)} min`} left`;
}

function leftOut({ bad, bad_count: many }) {
  if (!many) return [];
  const items = bad.map(({ path, reason }) => element("li", {}, `${path}: ${reason}`));
  if (many > bad.length) items.push(element("li", {}, `and ${count(many - bad.length)} more`));
  return [element("details", { class: "left-out" }, element("summary", {}, `${count(many)} left out`), element("ul", {}, ...items))];
}

/**
 * The gallery page by page, looked up by a text; each image begins a search.
 * @param {{text: string, page: number}} view
 * @param {{items: import("./api.js").Item[], total: number}} found
 * @param {{choose: (item: import("./api.js").Item) => void, turn: (page: number) => void, look: (text: string) => void}} on
 * @param {(item: import("./api.js").Item) => HTMLElement | string} factsOf  what is known of an image
 */
export function makeBrowser({ text, page }, { items, total }, on, factsOf) {
  const buttons = items.map((item) => {
    const image = element("img", { src: imageAddress(item.id), alt: "", loading: "lazy", width: 224, height: 224 });
    const name = element("span", { class: "name" }, item.label ? item.label.split("/").at(-1) : shortName(item.name, 1));
    const button = element("button", { type: "button", class: "sample", title: item.name, "aria-label": `Search with ${shortName(item.name)}` }, image, name, factsOf(item));
    button.addEventListener("click", () => on.choose(item));
    return button;
  });
  const input = element("input", { type: "search", id: freshId("text"), maxlength: 100, placeholder: "name, brand, \u2026" });
  input.value = text;
  const form = element("form", { role: "search", class: "look" }, element("label", { for: input.id, class: "unseen" }, "Look up images by words"), input, element("button", { type: "submit" }, "Look up"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    on.look(input.value.trim());
  });
  const title = element("h2", {}, `Or start with one of these ${count(total)} images`);
  const head = element("div", { class: "browse-head" }, title, form);
  const none = items.length ? [] : [element("p", { class: "none" }, text ? `No image has \u201c${text}\u201d in its name or texts, with these filters.` : "No image satisfies these filters.")];
  return element("section", { class: "samples" }, head, ...none, element("div", { class: "sample-grid" }, ...buttons), pagerOf(page, total, on.turn));
}

/** Where in the gallery the page is, and the ways on. */
function pagerOf(page, total, turn) {
  const pages = Math.max(1, Math.ceil(total / PAGE));
  const step = (words, to, name) => {
    const button = element("button", { type: "button", "aria-label": name, disabled: to < 1 || to > pages || to === page }, words);
    button.addEventListener("click", () => turn(to));
    return button;
  };
  const first = (page - 1) * PAGE + 1;
  const range = total && first <= total ? `${count(first)}\u2013${count(Math.min(total, page * PAGE))} of ${count(total)}` : `0 of ${count(total)}`;
  return element("nav", { class: "pager", "aria-label": "Pages of the gallery" }, step("\u00ab", 1, "First page"), step("\u2039 back", page - 1, "Page before"), element("span", {}, range), step("next \u203a", page + 1, "Next page"), step("\u00bb", pages, "Last page"));
}
