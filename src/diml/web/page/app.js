/** The page: two images are compared, one image is searched for; the viewer explains the scores. */

import { readAddress, searchOf, writeAddress } from "./address.js";
import { ApiError, getFacets, getItems, getNamed, getStatus, imageAddress, postMatch, postSearch } from "./api.js";
import { makeBox } from "./box.js";
import { element, freshId } from "./dom.js";
import { chosenOf, makeFilters, valueText, whereOf } from "./filters.js";
import { PAGE, makeBrowser, paintGallery, paintModel } from "./gallery.js";
import { mountExplanation } from "./hits.js";
import { shortName } from "./numbers.js";
import { makeTray } from "./tray.js";

const POLL = 700; // milliseconds between requests while the gallery is being embedded
const FACTS = 4; // columns that are shown with an image

const parts = Object.fromEntries(["gallery", "model", "tray", "notice", "side", "busy", "result", "start"].map((id) => [id, document.getElementById(id)]));
const state = {
  /** @type {import("./api.js").Status | null} */ status: null,
  /** @type {Object<string, import("./tray.js").Chosen | null>} */ chosen: { query: null, gallery: null },
  view: readAddress(window.location.search),
  /** @type {import("./filters.js").Facet[]} */ facets: [],
  /** @type {Map<number, Object<string, import("./tray.js").Chosen | null>>} */ uploads: new Map(), // of this visit
  /** @type {number | null} */ upload: null,
  open: false, // the settings of a search
  /** @type {AbortController | null} */ request: null,
  /** @type {{stop: () => void} | null} */ viewer: null,
};

const tray = makeTray((chosen) => {
  state.chosen = chosen;
  state.upload = keptNumber(chosen);
  go({ id: state.upload === null ? (chosen.query?.id ?? "") : "", box: "", hit: 1, page: chosen.query ? state.view.page : 1 });
});
const box = makeBox((edges) => go({ box: edges, hit: 1 }));
let filters = makeFilters([], () => {});
parts.tray.replaceChildren(tray.root);
parts.side.replaceChildren(box.root);

/** Images that are no part of an address are kept under a number. */
function keptNumber(chosen) {
  if (!chosen.query?.file && !chosen.gallery) return null;
  const number = state.uploads.size + 1;
  state.uploads.set(number, chosen);
  return number;
}

/** Show something else, as a new entry of the history. @param {Partial<import("./address.js").View>} changes */
function go(changes) {
  const before = searchOf(state.view);
  const upload = window.history.state?.upload ?? null;
  state.view = { ...state.view, ...changes, path: "" };
  writeAddress(state.view, before !== searchOf(state.view) || upload !== state.upload, state.upload);
  return run();
}

/** Show what the address says: at first, and after the buttons back and forward. */
async function restore() {
  const view = readAddress(window.location.search);
  const upload = window.history.state?.upload ?? null;
  if (searchOf(view) === searchOf(state.view) && upload === state.upload && state.chosen.query) return; // only `#experts` has changed
  [state.view, state.upload] = [view, upload];
  const kept = state.uploads.get(upload);
  state.chosen = kept ? { ...kept } : { query: null, gallery: null };
  let failed = null;
  if (upload !== null && !kept) {
    state.upload = null;
    state.view = { ...view, box: "", hit: 1 };
    writeAddress(state.view, false, null);
    failed = new ApiError({ code: "gone", message: "The uploaded image is no longer here.", remedy: "Uploads are not kept, and are no part of an address: choose the image again." }, 0);
  } else if (view.id || view.path) {
    try {
      state.chosen.query = await ofGallery(view);
    } catch (error) {
      failed = error;
    }
  }
  tray.show(state.chosen);
  await run();
  if (failed) tell(failed);
}

/** The image of the gallery that an address names. */
async function ofGallery({ id, path }) {
  if (!path) return { id, name: "", src: imageAddress(id) };
  const [item] = (await getNamed(path)).items;
  state.view = { ...state.view, id: item.id, path: "" };
  writeAddress(state.view, false, null);
  return { id: item.id, name: item.name, src: imageAddress(item.id) };
}

async function watch() {
  let failed = null;
  try {
    state.status = await getStatus();
  } catch (error) {
    tell(error);
    return;
  }
  const { gallery } = state.status;
  paintGallery(parts.gallery, gallery);
  paintModel(parts.model, state.status);
  if (gallery?.phase === "ready" && gallery.kind === "index") {
    const side = makeSide().catch((error) => (failed = error)); // a large index takes seconds to count
    if (Object.keys(state.view.filters).length) await side;
    else side.then(() => failed && tell(failed));
  }
  if (gallery?.phase === "embedding") setTimeout(watch, POLL);
  if (state.chosen.query && (state.viewer || state.request || gallery?.phase === "embedding")) return;
  if (state.chosen.query) await run();
  else await restore();
  if (failed) tell(failed);
}

/** The filters of an index. */
async function makeSide() {
  state.facets = (await getFacets()).columns;
  filters = makeFilters(state.facets, (chosen) => go({ filters: chosen, hit: 1, page: 1 }));
  if (window.matchMedia("(min-width: 1001px)").matches) filters.root.open = true;
  parts.side.replaceChildren(box.root, ...(filters.empty ? [] : [filters.root]));
  paintSide();
}

/** The query with its box, and the filters. */
function paintSide() {
  const { query, gallery } = state.chosen;
  filters.paint(state.view.filters);
  const ready = state.status?.gallery?.phase === "ready";
  const whole = query && !gallery && ready ? (query.file ? query.src : imageAddress(query.id, "whole")) : null;
  box.paint(whole, query?.name ?? "", state.view.box);
  document.body.toggleAttribute("data-side", whole !== null || (!filters.empty && !gallery));
}

/** Compare two chosen images, search for one, or show the gallery. */
async function run() {
  const { query, gallery } = state.chosen;
  state.request?.abort();
  state.request = null;
  clear();
  paintSide();
  const ready = state.status?.gallery?.phase === "ready";
  if (!query) {
    welcome();
    return;
  }
  parts.start.replaceChildren();
  if (!gallery && !ready) {
    busy(waitingText(state.status?.gallery ?? null), state.status?.gallery?.phase === "embedding");
    return;
  }
  const request = new AbortController();
  state.request = request;
  busy(gallery ? "Comparing the two images\u2026" : "Searching\u2026", true);
  try {
    check([query, gallery]);
    const data = gallery ? await postMatch(await fileOf(query), await fileOf(gallery), request.signal) : await postSearch(query.id ?? query.file, optionsNow(), request.signal);
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

/** @returns {import("./api.js").SearchOptions} */
function optionsNow() {
  const { hits, rerank_at, share, box: part, copies } = state.view;
  return { hits, rerank_at, share, box: part, where: whereOf(state.facets, state.view.filters), exclude_self: !copies };
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
  return new File([await answer.blob()], chosen.name.split("/").at(-1) || "image.jpg");
}

/** What else is known of an image: its first columns. Texts and what is true speak for themselves, numbers are named. */
function factsOf({ metadata }) {
  if (state.status?.gallery?.kind !== "index") return "";
  const known = Object.entries(metadata).filter(([, value]) => value !== null && value !== "" && value !== false).slice(0, FACTS);
  if (!known.length) return "";
  const facts = known.map(([name, value]) => {
    if (value === true) return element("span", { class: "fact" }, name);
    if (typeof value === "string") return element("span", { class: "fact", title: name }, value);
    return element("span", { class: "fact" }, element("span", { class: "column" }, name), " ", valueText(value));
  });
  return element("span", { class: "facts" }, ...facts);
}

/** @param {import("./numbers.js").Explanation} data @param {boolean} search */
function show(data, search) {
  const name = data.pairs[0]?.names.query;
  if (search && name && state.chosen.query.name === "") tray.name(name); // of an id in the address
  const head = search ? [element("div", { class: "toolbar" }, verdictOf(data), settingsOf(), chipsOf())] : [];
  if (!data.pairs.length) {
    parts.result.replaceChildren(...head);
    const filtered = whereOf(state.facets, state.view.filters) !== "";
    tell({ message: filtered ? "No image satisfies the filters." : "There is no other image in the gallery.", remedy: filtered ? "Remove a filter." : "" });
    return;
  }
  const root = element("div");
  const actions = element("p", { class: "actions" });
  parts.result.replaceChildren(...head, ...saidOf(data), root, saveOf(data));
  const first = Math.min(state.view.hit, data.pairs.length) - 1;
  const painted = (index) => {
    if (search) actions.replaceChildren(...actionsOf(data, index));
    state.view = { ...state.view, hit: search ? index + 1 : 1 };
    writeAddress(state.view, false, state.upload);
  };
  state.viewer = mountExplanation(root, data, Math.max(0, first), painted, factsOf);
  const title = search ? root.querySelector("h2") : null;
  if (!title) return;
  const headOfHit = element("div", { class: "hit-head" });
  title.before(headOfHit);
  headOfHit.append(title, actions);
}

/** Whether the query is in the gallery at all: in a word, and why. */
function verdictOf({ in_gallery: verdict }) {
  if (!verdict) return "";
  const [words] = verdict.sentence.split(":");
  const summary = element("summary", {}, element("b", {}, `${words}.`), " ", element("span", { class: "why" }, "Why?"));
  return element("details", { class: `verdict-line ${verdict.likely ? "likely" : "unlikely"}` }, summary, element("p", {}, verdict.sentence));
}

/** What has to be said of the numbers, and of what is left out. */
function saidOf({ notices, own }) {
  const names = `${own.slice(0, 3).map(({ name }) => shortName(name)).join(", ")}${own.length > 3 ? ", \u2026" : ""}`;
  const left = own.length ? [`This very file is in the gallery (${names}), and is left out of the hits.`] : [];
  return [...left, ...notices].map((text) => element("p", { class: "hint" }, text));
}

/** The filters that are on, each with a button that removes it. */
function chipsOf() {
  const chips = chosenOf(state.facets, state.view.filters).map(({ text, without }) => {
    const chip = element("button", { type: "button", class: "filter-chip", "aria-label": `Remove the filter ${text}` }, text, element("span", { "aria-hidden": "true" }, "\u00d7"));
    chip.addEventListener("click", () => go({ filters: without, hit: 1, page: 1 }));
    return chip;
  });
  return element("div", { class: "filter-chips" }, ...chips);
}

/** How many hits, how many candidates are re-ranked, how much is matched, and whether copies are shown. */
function settingsOf() {
  const { limits } = state.status;
  const choice = (title, name, values, text) => {
    const id = freshId(name);
    const select = element("select", { id, "data-option": name }, ...values.map((value) => element("option", { value, selected: value === state.view[name] }, text(value))));
    select.addEventListener("change", () => {
      const value = typeof values[0] === "number" ? Number(select.value) : select.value;
      go({ [name]: value, hit: 1 }).then(() => document.querySelector(`[data-option=${name}]`)?.focus());
    });
    return element("span", {}, element("label", { for: id }, title), " ", select);
  };
  const with_ = (values, own) => (values.includes(own) ? values : [...values, own]);
  const counts = with_([4, 8, 16, 24].filter((value) => value <= limits.hits), state.view.hits);
  const depths = with_(["", "0", "20", "100", "500"], state.view.rerank_at);
  const shares = with_(["", "auto", "0.8", "0.5"], state.view.share);
  const copies = element("input", { type: "checkbox", id: freshId("copies"), checked: state.view.copies, "data-option": "copies" });
  copies.addEventListener("change", () => go({ copies: copies.checked, hit: 1 }));
  const choices = [
    choice("Hits", "hits", counts, String),
    choice("Re-rank", "rerank_at", depths, (value) => (value === "" ? "as the index is set" : value === "0" ? "none: pooled cosine alone" : `the best ${value}`)),
    choice("Match", "share", shares, (value) => (value === "" ? "as the index is set" : value === "auto" ? "similar regions only (partial)" : `${Math.round(100 * value)} % of each image (partial)`)),
    element("span", {}, copies, " ", element("label", { for: copies.id }, "show copies of the query's own file")),
  ];
  const root = element("details", { class: "settings", open: state.open }, element("summary", {}, "Settings"), element("p", { class: "choices" }, ...choices));
  root.addEventListener("toggle", () => (state.open = root.open));
  return root;
}

/** The numbers as a file. */
function saveOf(data) {
  const save = element("button", { type: "button" }, "Save the numbers (JSON)");
  save.addEventListener("click", () => download(data));
  return element("p", { class: "actions saving" }, save);
}

/** Actions on the displayed hit. */
function actionsOf(data, index) {
  const { hit, names } = data.pairs[index];
  const again = element("button", { type: "button", "data-action": "search" }, `Search with hit ${hit.rank}`);
  again.addEventListener("click", () => tray.set({ query: { id: hit.id, name: names.gallery, src: imageAddress(hit.id) }, gallery: null }));
  const whole = element("a", { href: imageAddress(hit.id, "whole"), target: "_blank", rel: "noopener" }, "Whole image");
  return [again, whole];
}

function download(data) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));
  const link = element("a", { href: address, download: "diml.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** Instructions, and the images of the gallery to start with. */
async function welcome() {
  const gallery = state.status?.gallery;
  const uses = [
    ["One image", `The most similar images of ${gallery?.name}, how likely each is the same, and why.`],
    ["Two images", "How similar they are, and which parts of one match which parts of the other."],
  ];
  const kept = state.status?.keeps_uploads ? "Uploaded images are saved by this server." : "Uploaded images are not saved, and are no part of the address of this page; that of a search with a gallery image can be shared.";
  const paragraphs = uses.slice(gallery ? 0 : 1).map(([title, text]) => element("p", {}, element("b", {}, title), element("br"), text));
  const intro = element("section", { class: "intro" }, element("div", {}, ...paragraphs), element("p", { class: "hint" }, `${kept} JSON API: `, element("a", { href: "api/docs" }, "/api/docs")));
  const asked = searchOf(state.view);
  if (gallery?.phase !== "ready") {
    parts.start.replaceChildren(intro);
    return;
  }
  const { text, page } = state.view;
  try {
    const found = await getItems({ offset: (Math.max(1, page) - 1) * PAGE, count: PAGE, text, where: whereOf(state.facets, state.view.filters) });
    if (state.chosen.query || searchOf(state.view) !== asked) return; // something else is shown by now
    const on = {
      choose: (item) => tray.set({ query: { id: item.id, name: item.name, src: imageAddress(item.id) }, gallery: null }),
      turn: (to) => go({ page: to }).then(() => parts.start.querySelector(".samples")?.scrollIntoView()),
      look: (words) => go({ text: words, page: 1 }),
    };
    parts.start.replaceChildren(element("div", { class: "toolbar" }, chipsOf()), makeBrowser({ text, page: Math.max(1, page) }, found, on, factsOf), intro);
  } catch (error) {
    parts.start.replaceChildren(intro);
    tell(error);
  }
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

window.addEventListener("popstate", restore);
window.addEventListener("unhandledrejection", (event) => tell({ message: `Error in the page: ${event.reason}`, remedy: "Reload it." }));
watch();
