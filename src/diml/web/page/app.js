/** The page: two images are compared, one is searched for; the viewer shows why. */

import { ApiError, getStatus, imageAddress, postMatch, postSearch } from "./api.js";
import { element, freshId } from "./dom.js";
import { makeSamples, paintGallery } from "./gallery.js";
import { mountExplanation } from "./hits.js";
import { makeTray } from "./tray.js";

const POLL = 700; // milliseconds between looks at a gallery that is being embedded

const room = Object.fromEntries(["gallery", "tray", "notice", "busy", "result", "start"].map((id) => [id, document.getElementById(id)]));
const state = {
  /** @type {import("./api.js").Status | null} */ status: null,
  /** @type {Object<string, import("./tray.js").Chosen | null>} */ chosen: { query: null, gallery: null },
  options: { hits: 8, rerank: 100 },
  /** @type {AbortController | null} */ request: null,
  /** @type {{stop: () => void} | null} */ viewer: null,
};

const tray = makeTray((chosen) => {
  state.chosen = chosen;
  run();
});
room.tray.replaceChildren(tray.root);

async function watch() {
  try {
    state.status = await getStatus();
  } catch (error) {
    tell(error);
    return;
  }
  const { gallery } = state.status;
  paintGallery(room.gallery, gallery);
  if (gallery?.phase === "embedding") setTimeout(watch, POLL);
  const waits = state.chosen.query && !state.chosen.gallery && !state.viewer && !state.request;
  if (waits && gallery?.phase !== "embedding") run();
  else if (!state.chosen.query) welcome();
}

/** Do what the chosen images ask for. */
async function run() {
  const { query, gallery } = state.chosen;
  state.request?.abort();
  state.request = null;
  clear();
  if (!query) {
    welcome();
    return;
  }
  room.start.replaceChildren();
  const ready = state.status?.gallery?.phase === "ready";
  if (!gallery && !ready) {
    busy(waitingWords(state.status?.gallery ?? null), state.status?.gallery?.phase === "embedding");
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
function waitingWords(gallery) {
  if (gallery?.phase === "embedding") return "The search begins when the folder is embedded. A second image can be compared now.";
  return "Add a second image to compare it with.";
}

/** Refuse what the server would refuse after a long upload. */
function check(chosen) {
  const files = chosen.flatMap((one) => (one?.file ? [one.file] : []));
  const size = files.reduce((sum, file) => sum + file.size, 0);
  const most = state.status?.limits.body_bytes ?? Infinity;
  if (size > most) throw new ApiError({ code: "too_large", message: `The images have ${megabytes(size)}, and the server takes ${megabytes(most)}.`, remedy: "Scale them down, or start diml with a larger --max-megabytes." }, 413);
}

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)}\u202fMB`;

/** The file of a chosen image; one of the gallery's is fetched. @param {import("./tray.js").Chosen} chosen */
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
  room.result.replaceChildren(element("div", { class: "toolbar" }, search ? optionsOf() : "", actions), root);
  const painted = (index) => actions.replaceChildren(...actionsOf(data, search ? index : null));
  state.viewer = mountExplanation(root, data, 0, painted);
  if (!search) painted(0);
}

/** How many hits, and how many candidates are re-ranked. */
function optionsOf() {
  const { limits } = state.status;
  const choice = (title, name, values, words) => {
    const id = freshId(name);
    const select = element("select", { id, "data-option": name }, ...values.map((value) => element("option", { value, selected: value === state.options[name] }, words(value))));
    select.addEventListener("change", () => {
      state.options[name] = Number(select.value);
      run().then(() => document.querySelector(`[data-option=${name}]`)?.focus());
    });
    return element("span", {}, element("label", { for: id }, title), " ", select);
  };
  const counts = [4, 8, 16, 24].filter((value) => value <= limits.hits || value === state.options.hits);
  return element("p", { class: "choices" }, choice("Hits", "hits", counts, String), choice("Re-rank", "rerank", [0, 20, 100, 500], (value) => (value ? `the best ${value}` : "nothing: pooled cosine alone")));
}

/** What can be done with the hit that is shown, and with all numbers. */
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

/** What to do here, and images to begin with. */
async function welcome() {
  const gallery = state.status?.gallery;
  const ready = gallery?.phase === "ready";
  if (room.start.dataset.ready === String(ready) && room.start.childElementCount) return;
  room.start.dataset.ready = String(ready);
  const cases = [
    ["Two images", "Which part of the one matches which part of the other, and what each match adds to the score."],
    ["One image", `The most alike in ${gallery?.name}, re-ranked part by part, and why one stands above another.`],
  ];
  const kept = state.status?.keeps_uploads ? "Images that are sent are kept by this server." : "Images go to this machine\u2019s own server and are not kept.";
  const told = cases.slice(0, gallery ? 2 : 1).map(([title, words]) => element("p", {}, element("b", {}, title), element("br"), words));
  const intro = element("section", { class: "intro" }, element("div", {}, ...told), element("p", { class: "hint" }, `${kept} The same by JSON: `, element("a", { href: "/api/openapi.json" }, "/api/openapi.json")));
  room.start.replaceChildren(intro);
  if (!ready) return;
  const choose = (item) => tray.set({ query: { id: item.id, name: item.name, src: imageAddress(item.id) }, gallery: null });
  const samples = await makeSamples(gallery.count, choose).catch(() => null);
  if (samples && room.start.contains(intro)) intro.after(samples);
}

function clear() {
  state.viewer?.stop();
  state.viewer = null;
  for (const name of ["notice", "busy", "result"]) room[name].replaceChildren();
  room.result.removeAttribute("aria-busy");
}

/** @param {string} words @param {boolean} turning */
function busy(words, turning) {
  room.result.toggleAttribute("aria-busy", turning);
  room.busy.replaceChildren(...(turning ? [element("i", { class: "turning", "aria-hidden": "true" })] : []), words);
}

/** @param {{message: string, remedy?: string}} error */
function tell(error) {
  room.notice.replaceChildren(element("b", {}, error.message), ...(error.remedy ? [element("span", {}, error.remedy)] : []));
}

window.addEventListener("unhandledrejection", (event) => tell({ message: `The page has a defect: ${event.reason}`, remedy: "Load it anew." }));
watch();
