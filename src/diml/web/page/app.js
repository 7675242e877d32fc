/** The page: two images are compared, one image is searched for; the viewer explains the scores. */

import { ApiError, getStatus, imageAddress, postMatch, postSearch } from "./api.js";
import { element, freshId } from "./dom.js";
import { makeSamples, paintGallery, paintModel } from "./gallery.js";
import { mountExplanation } from "./hits.js";
import { makeTray } from "./tray.js";

const POLL = 700; // milliseconds between requests while the gallery is being embedded

const parts = Object.fromEntries(["gallery", "model", "tray", "notice", "busy", "result", "start"].map((id) => [id, document.getElementById(id)]));
const state = {
  /** @type {import("./api.js").Status | null} */ status: null,
  /** @type {Object<string, import("./tray.js").Chosen | null>} */ chosen: { query: null, gallery: null },
  options: { hits: 8, rerank_at: 100 },
  /** @type {AbortController | null} */ request: null,
  /** @type {{stop: () => void} | null} */ viewer: null,
};

const tray = makeTray((chosen) => {
  state.chosen = chosen;
  run();
});
parts.tray.replaceChildren(tray.root);

async function watch() {
  try {
    state.status = await getStatus();
  } catch (error) {
    tell(error);
    return;
  }
  const { gallery } = state.status;
  paintGallery(parts.gallery, gallery);
  paintModel(parts.model, state.status);
  if (gallery?.phase === "embedding") setTimeout(watch, POLL);
  const waits = state.chosen.query && !state.chosen.gallery && !state.viewer && !state.request;
  if (waits && gallery?.phase !== "embedding") run();
  else if (!state.chosen.query) welcome();
}

/** Compare two chosen images, or search for one. */
async function run() {
  const { query, gallery } = state.chosen;
  state.request?.abort();
  state.request = null;
  clear();
  if (!query) {
    welcome();
    return;
  }
  parts.start.replaceChildren();
  const ready = state.status?.gallery?.phase === "ready";
  if (!gallery && !ready) {
    busy(waitingText(state.status?.gallery ?? null), state.status?.gallery?.phase === "embedding");
    return;
  }
  const request = new AbortController();
  state.request = request;
  busy(gallery ? "Comparing the two images\u2026" : "Searching\u2026", true);
  try {
    check([query, gallery]);
    const data = gallery ? await postMatch(await fileOf(query), await fileOf(gallery), request.signal) : await postSearch(query.id ?? query.file, state.options, request.signal);
    if (state.request !== request) return;
    clear();
    show(data, gallery === null);
  } catch (error) {
    if (error.name === "AbortError" || state.request !== request) return;
    clear();
    tell(error);
  } finally {
    if (state.request === request) state.request = null;
  }
}

/** @param {import("./api.js").GalleryStatus | null} gallery */
function waitingText(gallery) {
  if (gallery?.phase === "embedding") return "The search starts when the folder is embedded. A second image can be compared now.";
  return "Add a second image to compare it with.";
}

/** Reject what the server would reject after a long upload. */
function check(chosen) {
  const files = chosen.flatMap((one) => (one?.file ? [one.file] : []));
  const size = files.reduce((sum, file) => sum + file.size, 0);
  const most = state.status?.limits.body_bytes ?? Infinity;
  if (size > most) throw new ApiError({ code: "too_large", message: `The images have ${megabytes(size)}; the server accepts ${megabytes(most)}.`, remedy: "Scale them down, or start diml with a larger --max-megabytes." }, 413);
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)}\u202fMB`;

/** The file of a chosen image; that of a gallery image is fetched. @param {import("./tray.js").Chosen} chosen */
async function fileOf(chosen) {
  if (chosen.file) return chosen.file;
  const answer = await fetch(imageAddress(chosen.id, "whole"));
  return new File([await answer.blob()], chosen.name.split("/").at(-1));
}

/** @param {import("./numbers.js").Explanation} data @param {boolean} search */
function show(data, search) {
  if (!data.pairs.length) {
    tell({ message: "There is no other image in the gallery.", remedy: "" });
    return;
  }
  const root = element("div");
  const actions = element("p", { class: "actions" });
  parts.result.replaceChildren(element("div", { class: "toolbar" }, search ? optionsOf() : "", actions), ...saidOf(data), root);
  const painted = (index) => actions.replaceChildren(...actionsOf(data, search ? index : null));
  state.viewer = mountExplanation(root, data, 0, painted);
  if (!search) painted(0);
}

/** Whether the query is in the gallery at all, and what has to be said of the numbers. */
function saidOf({ in_gallery: verdict, notices }) {
  const said = verdict ? [element("p", { class: `verdict-line ${verdict.likely ? "likely" : "unlikely"}` }, verdict.sentence)] : [];
  return [...said, ...notices.map((notice) => element("p", { class: "hint" }, notice))];
}

/** How many hits, and how many candidates are re-ranked. */
function optionsOf() {
  const { limits } = state.status;
  const choice = (title, name, values, text) => {
    const id = freshId(name);
    const select = element("select", { id, "data-option": name }, ...values.map((value) => element("option", { value, selected: value === state.options[name] }, text(value))));
    select.addEventListener("change", () => {
      state.options[name] = Number(select.value);
      run().then(() => document.querySelector(`[data-option=${name}]`)?.focus());
    });
    return element("span", {}, element("label", { for: id }, title), " ", select);
  };
  const counts = [4, 8, 16, 24].filter((value) => value <= limits.hits || value === state.options.hits);
  return element("p", { class: "choices" }, choice("Hits", "hits", counts, String), choice("Re-rank", "rerank_at", [0, 20, 100, 500], (value) => (value ? `the best ${value}` : "none: pooled cosine alone")));
}

/** Actions on the displayed hit, and on all numbers. */
function actionsOf(data, index) {
  const save = element("button", { type: "button" }, "Save the numbers (JSON)");
  save.addEventListener("click", () => download(data));
  if (index === null) return [save];
  const { hit, names } = data.pairs[index];
  const again = element("button", { type: "button", "data-action": "search" }, `Search with hit ${hit.rank}`);
  again.addEventListener("click", () => tray.set({ query: { id: hit.id, name: names.gallery, src: imageAddress(hit.id) }, gallery: null }));
  const whole = element("a", { href: imageAddress(hit.id, "whole"), target: "_blank", rel: "noopener" }, "Whole image");
  return [again, whole, save];
}

function download(data) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
  const link = element("a", { href: address, download: "diml.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** Instructions, and images to start with. */
async function welcome() {
  const gallery = state.status?.gallery;
  const ready = gallery?.phase === "ready";
  if (parts.start.dataset.ready === String(ready) && parts.start.childElementCount) return;
  parts.start.dataset.ready = String(ready);
  const uses = [
    ["Two images", "Which regions match, and how much each match contributes to the score."],
    ["One image", `The most similar images of ${gallery?.name}, re-ranked region by region, and why one ranks above another.`],
  ];
  const kept = state.status?.keeps_uploads ? "Uploaded images are saved by this server." : "Images are sent to the server on this machine and are not saved.";
  const paragraphs = uses.slice(0, gallery ? 2 : 1).map(([title, text]) => element("p", {}, element("b", {}, title), element("br"), text));
  const intro = element("section", { class: "intro" }, element("div", {}, ...paragraphs), element("p", { class: "hint" }, `${kept} JSON API: `, element("a", { href: "api/openapi.json" }, "/api/openapi.json")));
  parts.start.replaceChildren(intro);
  if (!ready) return;
  const choose = (item) => tray.set({ query: { id: item.id, name: item.name, src: imageAddress(item.id) }, gallery: null });
  const samples = await makeSamples(gallery.count, choose).catch(() => null);
  if (samples && parts.start.contains(intro)) intro.after(samples);
}

function clear() {
  state.viewer?.stop();
  state.viewer = null;
  for (const name of ["notice", "busy", "result"]) parts[name].replaceChildren();
  parts.result.removeAttribute("aria-busy");
}

/** @param {string} text @param {boolean} turning */
function busy(text, turning) {
  parts.result.toggleAttribute("aria-busy", turning);
  parts.busy.replaceChildren(...(turning ? [element("i", { class: "turning", "aria-hidden": "true" })] : []), text);
}

/** @param {{message: string, remedy?: string}} error */
function tell(error) {
  parts.notice.replaceChildren(element("b", {}, error.message), ...(error.remedy ? [element("span", {}, error.remedy)] : []));
}

window.addEventListener("unhandledrejection", (event) => tell({ message: `Error in the page: ${event.reason}`, remedy: "Reload it." }));
watch();
