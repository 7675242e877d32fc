/** The gallery: its progress, and some of its images to start with. */

import { getItems, imageAddress } from "./api.js";
import { element } from "./dom.js";
import { shortName } from "./numbers.js";

const SAMPLES = 12;

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
 * Some images of the gallery to search with, evenly spaced.
 * @param {number} total @param {(item: import("./api.js").Item) => void} onChoose
 */
export async function makeSamples(total, onChoose) {
  const wanted = Math.min(SAMPLES, total);
  const offsets = Array.from({ length: wanted }, (_, index) => Math.floor((index * total) / wanted));
  const found = (await Promise.all(offsets.map((offset) => getItems(offset, 1)))).flatMap(({ items }) => items);
  const buttons = found.map((item) => {
    const image = element("img", { src: imageAddress(item.id), alt: "", loading: "lazy", width: 224, height: 224 });
    const button = element("button", { type: "button", class: "sample", title: item.name, "aria-label": `Search with ${shortName(item.name)}` }, image);
    button.addEventListener("click", () => onChoose(item));
    return button;
  });
  return element("section", { class: "samples" }, element("h2", {}, "Or start with one of these"), element("div", {}, ...buttons));
}
