/**
 * The JSON API of the server; the page uses nothing else.
 *
 * @typedef {Object} GalleryStatus
 * @property {"folder" | "index"} kind
 * @property {string} name
 * @property {"embedding" | "ready" | "failed"} phase
 * @property {number} done
 * @property {number} total
 * @property {number} count  images that can be searched
 * @property {number} seconds  since embedding started
 * @property {number} bad_count
 * @property {{path: string, reason: string}[]} bad
 * @property {string} error
 *
 * @typedef {Object} Status
 * @property {string} version
 * @property {string} model
 * @property {Object<string, string | number>} matcher
 * @property {{place: string, model: string, data: string, kind: string, classes: number, separates: boolean} | null} calibration
 * @property {string} calibration_notice  why a calibration that is there is not used
 * @property {boolean} keeps_uploads
 * @property {{body_bytes: number, pixels: number, requests: number, hits: number, rerank_at: number}} limits
 * @property {GalleryStatus | null} gallery
 *
 * @typedef {{id: string, name: string, label: string, metadata: Object<string, string | number | boolean | null>}} Item
 * @typedef {{hits: number, rerank_at: string, where: string, box: string, share: string, exclude_self: boolean}} SearchOptions
 */

/** A request rejected by the server, with the remedy. */
export class ApiError extends Error {
  /** @param {{code: string, message: string, remedy: string}} error @param {number} status */
  constructor({ code, message, remedy }, status) {
    super(message);
    Object.assign(this, { code, remedy, status });
  }
}

/** @returns {Promise<Status>} */
export function getStatus() {
  return ask("api/status");
}

/**
 * Some images of the gallery, and how many there are.
 * @param {{offset: number, count: number, text?: string, where?: string}} asked
 * @returns {Promise<{items: Item[], total: number}>}
 */
export function getItems(asked) {
  return ask(`api/gallery?${parametersOf(asked)}`);
}

/** The image of a path. @param {string} path @returns {Promise<{items: Item[]}>} */
export function getNamed(path) {
  return ask(`api/gallery?${parametersOf({ path })}`);
}

/** The columns of the index. @returns {Promise<{columns: import("./filters.js").Facet[]}>} */
export function getFacets() {
  return ask("api/facets");
}

/** @param {string} id @param {"view" | "whole"} kind */
export function imageAddress(id, kind = "view") {
  return `api/gallery/image?id=${encodeURIComponent(id)}&kind=${kind}`;
}

/**
 * Compare two images.
 * @param {File} query @param {File} gallery @param {AbortSignal} signal
 * @returns {Promise<import("./numbers.js").Explanation>}
 */
export function postMatch(query, gallery, signal) {
  return ask("api/match", { method: "POST", body: formOf({ query, gallery }), signal });
}

/**
 * Search for an image file, or for a gallery image by its id.
 * @param {File | string} query @param {SearchOptions} options  empty ones are left out @param {AbortSignal} signal
 * @returns {Promise<import("./numbers.js").Explanation>}
 */
export function postSearch(query, options, signal) {
  const named = typeof query === "string";
  const parameters = parametersOf({ ...options, id: named ? query : "" });
  return ask(`api/search?${parameters}`, { method: "POST", body: named ? undefined : formOf({ query }), signal });
}

function parametersOf(values) {
  const given = Object.entries(values).filter(([, value]) => value !== undefined && value !== "");
  return new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
}

/** @param {Object<string, File>} files */
function formOf(files) {
  const form = new FormData();
  for (const [name, file] of Object.entries(files)) form.append(name, file, file.name || `${name}.png`);
  return form;
}

async function ask(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ code: "no_answer", message: "The server does not answer.", remedy: "Check that diml serve is still running. Image files that changed since they were chosen have to be chosen again." }, 0);
  }
  const data = await answer.json().catch(() => null);
  if (!answer.ok) throw new ApiError(data?.error ?? { code: "unreadable", message: `The server answered with status ${answer.status}.`, remedy: "Reload the page." }, answer.status);
  return data;
}
