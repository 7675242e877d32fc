/** Creating elements. */

/**
 * An element with attributes and children; strings become text, never markup.
 * @param {string} tag
 * @param {Object<string, string | number | boolean>} [attributes]  false omits an attribute, true sets it to the empty string
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** As `element`, for SVG. @param {string} tag @param {Object<string, string | number | boolean>} [attributes] */
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

/** An id that is unique in the document. @param {string} stem */
export function freshId(stem) {
  made += 1;
  return `${stem}-${made}`;
}
