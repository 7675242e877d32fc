/** Making elements. */

/**
 * An element with attributes and children; strings become text, never markup.
 * @param {string} tag
 * @param {Object<string, string | number | boolean>} [attributes]  false leaves one away, true sets it empty
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** As `element`, for drawings. @param {string} tag @param {Object<string, string | number | boolean>} [attributes] */
export function svgElement(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children);
  return made;
}

let made = 0;

/** An id that no other element of the document has. @param {string} stem */
export function freshId(stem) {
  made += 1;
  return `${stem}-${made}`;
}
