/**
 * The JSON API of the server, which is all that the page uses.
 *
 * @typedef {Object} GalleryStatus
 * @property {"folder" | "index"} kind
 * @property {string} name
 * @property {"embedding" | "ready" | "failed"} phase
 * @property {number} done
 * @property {number} total
 * @property {number} count  images that can be searched
 * @property {number} seconds  since embedding began
 * @property {number} bad_count
 * @property {{path: string, reason: string}[]} bad
 * @property {string} trouble
 *
 * @typedef {Object} Status
 * @property {string} version
 * @property {string} model
 * @property {boolean} keeps_uploads
 * @property {{body_bytes: number, pixels: number, requests: number, hits: number, rerank: number}} limits
 * @property {GalleryStatus | null} gallery
 *
 * @typedef {{id: string, name: string, label: string}} Item
 * @typedef {{hits: number, rerank: number}} SearchOptions
 */

/** What the server refused, with the remedy. */
export class ApiError extends Error {
  /** @param {{code: string, message: string, remedy: string}} told @param {number} status */
  constructor({ code, message, remedy }, status) {
    super(message);
    Object.assign(this, { code, remedy, status });
  }
}

/** @returns {Promise<Status>} */
export function getStatus() {
  return ask("/api/status");
}

/** Some images of the gallery. @param {number} offset @param {number} count @returns {Promise<{items: Item[]}>} */
export function getItems(offset, count) {
  return ask(`/api/gallery?offset=${offset}&count=${count}`);
}

/** @param {string} id @param {"view" | "whole"} kind */
export function imageAddress(id, kind = "view") {
  return `/api/gallery/image?id=${encodeURIComponent(id)}&kind=${kind}`;
}

/**
 * Compare two images.
 * @param {File} query @param {File} gallery @param {AbortSignal} signal
 * @returns {Promise<import("./numbers.js").Explanation>}
 */
export function postMatch(query, gallery, signal) {
  return ask("/api/match", { method: "POST", body: formOf({ query, gallery }), signal });
}

/**
 * Search for a image that is sent, or for one of the gallery by its id.
 * @param {File | string} query @param {SearchOptions} options @param {AbortSignal} signal
 * @returns {Promise<import("./numbers.js").Explanation>}
 */
export function postSearch(query, { hits, rerank }, signal) {
  const words = new URLSearchParams({ hits: String(hits), rerank: String(rerank) });
  if (typeof query === "string") words.set("id", query);
  const body = typeof query === "string" ? undefined : formOf({ query });
  return ask(`/api/search?${words}`, { method: "POST", body, signal });
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
    throw new ApiError({ code: "no_answer", message: "The server does not answer.", remedy: "Is diml serve still running in its terminal? Images that changed since they were chosen have to be chosen anew." }, 0);
  }
  const told = await answer.json().catch(() => null);
  if (!answer.ok) throw new ApiError(told?.error ?? { code: "unreadable", message: `The server answered ${answer.status}.`, remedy: "Load the page anew." }, answer.status);
  return told;
}
