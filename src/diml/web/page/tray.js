/** The input: two places for images, filled by dropping, pasting or choosing files. */

import { element, freshId } from "./dom.js";
import { shortName } from "./numbers.js";

/**
 * @typedef {{file: File, name: string, src: string} | {id: string, name: string, src: string}} Chosen
 *   a file of the user, or an image of the gallery
 * @typedef {"query" | "gallery"} Place
 */

const WORDS = {
  query: { title: "Image", empty: "Drop an image here, paste it, or" },
  gallery: { title: "Compare with", empty: "Drop a second image here to compare, or" },
};

/**
 * @param {(chosen: Object<Place, Chosen | null>) => void} onChange  called when a place was filled or emptied
 */
export function makeTray(onChange) {
  /** @type {Object<Place, Chosen | null>} */
  const chosen = { query: null, gallery: null };
  const places = Object.fromEntries(["query", "gallery"].map((place) => [place, makePlace(place, (files) => put(files, place), () => set({ [place]: null }))]));
  const swap = element("button", { type: "button", class: "swap", title: "Swap the two images", "aria-label": "Swap the two images" }, "\u21c4");
  swap.addEventListener("click", () => set({ query: chosen.gallery, gallery: chosen.query }));
  const root = element("div", { class: "tray" }, places.query.root, swap, places.gallery.root);

  /** @param {Partial<Object<Place, Chosen | null>>} changes */
  function set(changes) {
    const before = Object.values(chosen);
    Object.assign(chosen, changes);
    if (!chosen.query && chosen.gallery) Object.assign(chosen, { query: chosen.gallery, gallery: null });
    const after = Object.values(chosen);
    before.filter((one) => one?.file && !after.includes(one)).forEach((one) => URL.revokeObjectURL(one.src));
    paint();
    onChange({ ...chosen });
  }
  /** Fill both places, without telling of it; files get a new address. @param {Object<Place, Chosen | null>} wanted */
  function show(wanted) {
    for (const place of ["query", "gallery"]) {
      const one = wanted[place];
      chosen[place] = one?.file ? Object.assign(one, { src: URL.createObjectURL(one.file) }) : one;
    }
    paint();
  }
  /** Name the query, of which only the id was known. @param {string} text */
  function name(text) {
    chosen.query.name = text;
    paint();
  }
  /** One file goes to a place; two fill both. @param {File[]} files @param {Place} [place] */
  function put(files, place) {
    const made = files.slice(0, 2).map((file) => ({ file, name: file.name || "pasted image", src: URL.createObjectURL(file) }));
    if (made.length === 2) set({ query: made[0], gallery: made[1] });
    else if (made.length === 1) set({ [place ?? "query"]: made[0], ...(place ? {} : { gallery: null }) });
  }
  function paint() {
    places.query.paint(chosen.query);
    places.gallery.paint(chosen.gallery);
    places.gallery.root.toggleAttribute("data-waiting", !chosen.query);
    swap.hidden = !(chosen.query && chosen.gallery);
  }
  paint();
  listen(root, put);
  return { root, set, show, name };
}

/** One place: empty with a button to choose a file, or with its image. */
function makePlace(place, onFiles, onClear) {
  const id = freshId(place);
  const words = WORDS[place];
  const input = element("input", { type: "file", id, accept: "image/*", multiple: true, class: "unseen" });
  input.addEventListener("change", () => {
    onFiles([...input.files]);
    input.value = "";
  });
  const label = element("label", { for: id, class: "choose" });
  const body = element("div", { class: "body" });
  const root = element("section", { class: "place", "data-place": place, "aria-label": words.title }, element("h2", {}, words.title), body, input);
  /** @param {Chosen | null} chosen */
  function paint(chosen) {
    root.toggleAttribute("data-filled", chosen !== null);
    if (!chosen) {
      label.textContent = "choose a file";
      body.replaceChildren(element("p", {}, words.empty, " ", label));
      return;
    }
    label.textContent = "change";
    const image = element("img", { src: chosen.src, alt: `${words.title}: ${chosen.name}` });
    const broken = element("span", { class: "broken", hidden: true, "aria-hidden": "true" }, "?");
    image.addEventListener("error", () => {
      image.hidden = true;
      broken.hidden = false;
    });
    const uploaded = chosen.file ? [element("span", { class: "uploaded" }, "uploaded, so a link to this page does not contain it")] : [];
    const about = element("span", { class: "words" }, element("span", { class: "name", title: chosen.name }, shortName(chosen.name)), ...uploaded);
    const clear = element("button", { type: "button", class: "clear", "aria-label": `Remove ${chosen.name}`, title: "Remove" }, "\u00d7");
    clear.addEventListener("click", () => {
      onClear();
      input.focus();
    });
    body.replaceChildren(image, broken, about, label, clear);
  }
  return { root, paint };
}

/** Dropping on a place fills it, dropping or pasting elsewhere fills the first. */
function listen(root, put) {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const placeAt = (event) => event.target.closest?.(".place")?.dataset.place;
  let depth = 0; // dragenter of a child comes before dragleave of its parent
  const show = (change) => {
    depth = Math.max(0, depth + change);
    document.body.toggleAttribute("data-dragging", depth > 0);
  };
  document.addEventListener("dragenter", (event) => hasFiles(event) && show(1));
  document.addEventListener("dragleave", (event) => hasFiles(event) && show(-1));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    show(-depth);
    const filled = root.querySelector("[data-place=query]").hasAttribute("data-filled");
    put([...event.dataTransfer.files], filled ? placeAt(event) : undefined);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) put(files);
  });
}
