/**
 * What the page shows, in the address: `?id=...&box=...&is.brand=Arla&from.price=2&hit=3`. A link keeps it, and so do a
 * reload and the buttons back and forward. Uploaded images are not part of an address: they are kept while the page is
 * open, and an entry of the history only has their number.
 *
 * @typedef {{values: string[], none: boolean, from: string, to: string, like: string}} Choice  of one column
 * @typedef {Object<string, Choice>} Filters  column -> choice
 * @typedef {Object} View
 * @property {string} id  of the gallery image that is searched for, or ""
 * @property {string} path  of that image, where only it is known
 * @property {string} box  "x0,y0,x1,y1", fractions of the query; or ""
 * @property {Filters} filters
 * @property {string} text  that images of the gallery are looked up by
 * @property {number} page  of the gallery, from 1
 * @property {number} hit  that is explained, from 1
 * @property {number} hits
 * @property {string} rerank_at  K; "" for the gallery's own
 * @property {string} share  of what is matched: "" for the matcher's own
 * @property {boolean} copies  whether images whose file is that of the query are shown
 */

const NUMBERS = { page: 1, hit: 1, hits: 8 };
const TEXTS = ["id", "path", "box", "text", "share", "rerank_at"];
const KINDS = { is: "values", none: "none", from: "from", to: "to", like: "like" };

/** @returns {Choice} */
export function noChoice() {
  return { values: [], none: false, from: "", to: "", like: "" };
}

/** What is chosen of a column, if anything. @param {Filters} filters @param {string} column @returns {Choice | undefined} */
export function choiceOf(filters, column) {
  return Object.hasOwn(filters, column) ? filters[column] : undefined;
}

/** @param {string} search  `location.search` @returns {View} */
export function readAddress(search) {
  const given = new URLSearchParams(search);
  const view = { filters: {}, copies: given.get("copies") === "1" };
  for (const name of TEXTS) view[name] = given.get(name) ?? "";
  for (const [name, usual] of Object.entries(NUMBERS)) view[name] = numberOf(given.get(name), usual);
  for (const [key, value] of given) {
    const [kind, ...rest] = key.split(".");
    const [field, column] = [KINDS[kind], rest.join(".")];
    if (!Object.hasOwn(KINDS, kind) || !column) continue;
    const known = choiceOf(view.filters, column) ?? noChoice();
    const choice = field === "values" ? { ...known, values: [...known.values, value] } : { ...known, [field]: field === "none" ? true : value };
    view.filters = { ...view.filters, [column]: choice };
  }
  return view;
}

/** A whole number of at least 0, or the usual one. */
function numberOf(text, usual) {
  return text !== null && /^\d{1,6}$/.test(text) ? Number(text) : usual;
}

/** @param {View} view @returns {string} what `readAddress` reads, without what is usual */
export function searchOf(view) {
  const given = new URLSearchParams();
  for (const name of TEXTS) if (view[name]) given.set(name, view[name]);
  for (const [name, usual] of Object.entries(NUMBERS)) if (view[name] !== usual) given.set(name, String(view[name]));
  if (view.copies) given.set("copies", "1");
  for (const [column, { values, none, from, to, like }] of Object.entries(view.filters)) {
    for (const value of values) given.append(`is.${column}`, value);
    if (none) given.set(`none.${column}`, "1");
    for (const [kind, value] of Object.entries({ from, to, like })) if (value) given.set(`${kind}.${column}`, value);
  }
  const text = given.toString();
  return text ? `?${text}` : "";
}

/**
 * Put a view into the address.
 * @param {View} view @param {boolean} push  as a new entry of the history @param {number | null} upload
 */
export function writeAddress(view, push, upload) {
  const address = `${window.location.pathname}${searchOf(view)}${window.location.hash}`;
  window.history[push ? "pushState" : "replaceState"]({ upload }, "", address);
}
