/** What is switched on, in the hash of the address: `#experts&overlay`. A link keeps it, and so does a reload. */

const NAMES = ["experts", "overlay"];
const listeners = new Set();

/** @param {"experts" | "overlay"} name */
export function isOn(name) {
  return window.location.hash.slice(1).split("&").includes(name);
}

/** @param {"experts" | "overlay"} name @param {boolean} on */
export function turn(name, on) {
  const chosen = NAMES.filter((one) => (one === name ? on : isOn(one)));
  const address = `${window.location.pathname}${window.location.search}${chosen.length ? `#${chosen.join("&")}` : ""}`;
  window.history.replaceState(window.history.state, "", address);
  tell();
}

/**
 * Be told of every change.
 * @param {() => void} listener
 * @returns {() => void} stops it
 */
export function watchState(listener) {
  if (!listeners.size) {
    mark();
    window.addEventListener("hashchange", tell);
    document.addEventListener("keydown", onKey);
  }
  listeners.add(listener);
  return () => {
    listeners.delete(listener);
    if (listeners.size) return;
    window.removeEventListener("hashchange", tell);
    document.removeEventListener("keydown", onKey);
  };
}

/** Elements with the class `experts-only` follow this attribute. */
function mark() {
  document.documentElement.toggleAttribute("data-experts", isOn("experts"));
}

function tell() {
  mark();
  for (const listener of [...listeners]) listener();
}

/** `e` switches between the views, except where a letter is typed. */
function onKey(event) {
  const typing = event.target.closest?.("input:not([type=range]):not([type=checkbox]), select, textarea, [contenteditable]");
  if (event.key !== "e" || event.altKey || event.ctrlKey || event.metaKey || typing) return;
  event.preventDefault();
  turn("experts", !isOn("experts"));
}
