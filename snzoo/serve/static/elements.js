// Elements of the page. Strings become text nodes, so that no name of a file or class is markup.

const SVG = "http://www.w3.org/2000/svg";

export function create(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function percent(share) {
  return `${(100 * share).toFixed(1)}\u00a0%`;
}
