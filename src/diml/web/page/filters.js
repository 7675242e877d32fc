/** Filters by the columns of an index: check boxes for few values, ranges for numbers, a text for many values. */

import { choiceOf, noChoice } from "./address.js";
import { element, freshId } from "./dom.js";

/**
 * @typedef {Object} Facet
 * @property {string} name
 * @property {"text" | "integer" | "number" | "boolean"} type
 * @property {"values" | "range" | "text"} kind
 * @property {{value: string | boolean, count: number}[]} values  most frequent first
 * @property {number | null} low
 * @property {number | null} high
 * @property {number} missing  images without a value
 */

const FIRST = 5; // values that are shown before "all"
const KEYWORDS = new Set(["and", "or", "not", "in", "like", "between", "is", "null", "true", "false"]);

/** Whether something is chosen of a column. @param {import("./address.js").Choice | undefined} choice */
const isChosen = (choice) => choice !== undefined && (choice.values.length > 0 || choice.none || choice.from !== "" || choice.to !== "" || choice.like !== "");

/**
 * The condition of the chosen filters, in the language of `where`; "" for none. Columns that the index does not have are
 * left out.
 * @param {Facet[]} facets @param {import("./address.js").Filters} filters
 */
export function whereOf(facets, filters) {
  const tests = facets.filter(({ name }) => isChosen(choiceOf(filters, name))).map((facet) => testOf(facet, choiceOf(filters, facet.name)));
  return tests.filter(Boolean).join(" and ");
}

function testOf({ name, type, kind }, { values, none, from, to, like }) {
  const column = quotedColumn(name);
  const any = [];
  if (kind === "range") {
    const ends = [from && finite(from) && `${column} >= ${from}`, to && finite(to) && `${column} <= ${to}`].filter(Boolean);
    if (ends.length) any.push(ends.join(" and "));
  } else if (kind === "text" && like) any.push(`${column} like ${quotedText(`%${like.replace(/[\\%_]/g, "\\$&")}%`)}`);
  else if (values.length) {
    const written = type === "boolean" ? values.filter((value) => value === "true" || value === "false") : values.map(quotedText);
    if (written.length) any.push(`${column} in (${written.join(", ")})`);
  }
  if (none) any.push(`${column} is null`);
  return any.length > 1 ? `(${any.join(" or ")})` : any[0];
}

const finite = (text) => /^[-+]?\d+(\.\d+)?$/.test(text);
const quotedText = (text) => `'${text.replaceAll("'", "''")}'`;

/** As `quoted_column` of `diml.search.filters`. @param {string} name */
export function quotedColumn(name) {
  return /^[\p{L}_][\p{L}\p{N}_]*$/u.test(name) && !KEYWORDS.has(name.toLowerCase()) ? name : `"${name.replaceAll('"', '""')}"`;
}

/**
 * What is chosen, in words, each with the filters without it.
 * @param {Facet[]} facets @param {import("./address.js").Filters} filters
 * @returns {{text: string, without: import("./address.js").Filters}[]}
 */
export function chosenOf(facets, filters) {
  return facets.flatMap((facet) => {
    const { name } = facet;
    const choice = choiceOf(filters, name);
    if (!isChosen(choice)) return [];
    const but = (changes) => ({ ...filters, [name]: { ...choice, ...changes } });
    const chips = choice.values.map((value) => ({ text: `${name}: ${wordOf(facet, value)}`, without: but({ values: choice.values.filter((one) => one !== value) }) }));
    if (choice.none) chips.push({ text: `${name}: no value`, without: but({ none: false }) });
    if (choice.from) chips.push({ text: `${name} from ${choice.from}`, without: but({ from: "" }) });
    if (choice.to) chips.push({ text: `${name} up to ${choice.to}`, without: but({ to: "" }) });
    if (choice.like) chips.push({ text: `${name}: ${choice.like}`, without: but({ like: "" }) });
    return chips;
  });
}

const wordOf = ({ type }, value) => (type === "boolean" ? (String(value) === "true" ? "yes" : "no") : String(value) || "(empty)");

/**
 * A metadata value as it is shown with an image.
 * @param {string | number | boolean} value
 */
export function valueText(value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return /\.\d$/.test(String(value)) ? value.toFixed(2) : String(value); // 1.5 is often a price: 1.50
}

/**
 * The columns to filter by.
 * @param {Facet[]} facets @param {(filters: import("./address.js").Filters) => void} onChange
 */
export function makeFilters(facets, onChange) {
  const useful = facets.filter(({ kind, values, low, high, missing }) => kind === "text" || (kind === "values" ? values.length + (missing > 0) > 1 : low !== high));
  let filters = {};
  const change = (name, changes) => onChange({ ...filters, [name]: { ...(choiceOf(filters, name) ?? noChoice()), ...changes } });
  const columns = useful.map((facet) => makeColumn(facet, (changes) => change(facet.name, changes)));
  const clear = element("button", { type: "button", class: "as-link", hidden: true }, "Clear all");
  clear.addEventListener("click", () => onChange({}));
  const title = element("summary", {}, element("b", {}, "Filters"));
  const root = element("details", { class: "filters" }, title, ...columns.map(({ root }) => root), clear);
  /** @param {import("./address.js").Filters} chosen */
  function paint(chosen) {
    filters = chosen;
    const count = chosenOf(useful, filters).length;
    title.replaceChildren(element("b", {}, "Filters"), count ? ` (${count})` : "");
    clear.hidden = !count;
    useful.forEach(({ name }, row) => columns[row].paint(choiceOf(filters, name) ?? noChoice()));
  }
  return { root, paint, empty: !useful.length };
}

function makeColumn(facet, change) {
  const made = facet.kind === "range" ? makeRange(facet, change) : facet.kind === "text" ? makeText(facet, change) : makeValues(facet, change);
  const root = element("fieldset", { "data-column": facet.name }, element("legend", {}, facet.name), ...made.children);
  return { root, paint: made.paint };
}

function makeValues(facet, change) {
  const entries = facet.values.map(({ value, count }) => ({ value: String(value), count, words: wordOf(facet, value) }));
  if (facet.missing) entries.push({ value: null, count: facet.missing, words: "no value" });
  const lines = entries.map(({ value, count, words }, place) => {
    const box = element("input", { type: "checkbox", id: freshId("value") });
    box.addEventListener("change", () => change(value === null ? { none: box.checked } : { values: lines.filter((line) => line.value !== null && line.box.checked).map((line) => line.value) }));
    const line = element("label", { for: box.id, class: "value", hidden: place >= FIRST }, box, element("span", { class: "words" }, words), element("span", { class: "count" }, count.toLocaleString("en")));
    return { value, box, line };
  });
  const list = element("div", { class: "values" }, ...lines.map(({ line }) => line));
  const all = element("button", { type: "button", class: "as-link" }, `all ${entries.length}`);
  const open = () => {
    lines.forEach(({ line }) => (line.hidden = false));
    all.remove();
  };
  all.addEventListener("click", () => {
    open();
    lines[FIRST].box.focus();
  });
  return {
    children: entries.length > FIRST ? [list, all] : [list],
    paint({ values, none }) {
      for (const { value, box } of lines) box.checked = value === null ? none : values.includes(value);
      if (lines.slice(FIRST).some(({ box }) => box.checked)) open();
    },
  };
}

function makeRange({ name, type, low, high }, change) {
  const field = (end, words, bound) => {
    const step = type === "integer" ? "1" : "any";
    const input = element("input", { type: "number", step, placeholder: bound === null ? "" : bound, "aria-label": `${name} ${words}` });
    input.addEventListener("change", () => change({ [end]: finite(input.value) ? input.value : "" }));
    return input;
  };
  const [from, to] = [field("from", "from", low), field("to", "up to", high)];
  return {
    children: [element("div", { class: "range" }, from, element("span", {}, "to"), to)],
    paint(choice) {
      [from.value, to.value] = [choice.from, choice.to];
    },
  };
}

function makeText({ name }, change) {
  const input = element("input", { type: "search", maxlength: 100, placeholder: "contains", "aria-label": `${name} contains` });
  input.addEventListener("change", () => change({ like: input.value }));
  return {
    children: [input],
    paint({ like }) {
      input.value = like;
    },
  };
}
