// Making elements. Text from data only ever becomes text nodes and attribute values, never markup.
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// An HTML element; attributes that are functions listen to the event of that name.
export const html = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
export const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

// Text of another language or direction that shall not turn around what stands beside it.
export const bdi = (text) => html("bdi", {}, text);
export const isolated = (text) => `\u2068${text}\u2069`;

export const dot = (colour) =>
  svg("svg", { class: "dot", viewBox: "0 0 10 10", "aria-hidden": "true" }, svg("circle", { cx: 5, cy: 5, r: 5, fill: colour }));

// Black or white, whichever can be read better on a colour "#rrggbb" (WCAG's relative luminance).
export function inkOn(colour) {
  const [red, green, blue] = [1, 3, 5]
    .map((at) => parseInt(colour.slice(at, at + 2), 16) / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

export const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
export const shortened = (text, most) => (text.length > most ? `${text.slice(0, most - 1).trimEnd()}…` : text);
export const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));

// Subject, predicate and object of a relation, with the colours of its boxes.
export function sentence(relation, objects) {
  const end = (index) => [dot(objects[index].colour), " ", bdi(shortened(objects[index].name, 60))];
  const alone = relation.subject === relation.object || objects[relation.object].missing;
  return html("span", { class: "triplet" },
    end(relation.subject),
    " ",
    html("b", {}, bdi(shortened(relation.predicate, 80))),
    alone ? [] : [" ", end(relation.object)]);
}

export async function getJson(url, options = {}) {
  const response = await fetch(url, options);
  const value = await response.json().catch(() => ({}));
  if (!response.ok)
    throw Object.assign(new Error(value.error || `${response.status} ${response.statusText}`), { status: response.status });
  return value;
}
