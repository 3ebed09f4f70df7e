// Small helpers to make elements. They set text only, never HTML: what a model writes must stay text.

const SVG = "http://www.w3.org/2000/svg";

/** Find an element by its id. */
export const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Make an HTML element. Children that are texts become text. */
export const h = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

/** Make an SVG element. */
export const s = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

/** Put an element at a share of its parent's width. Scripts may set styles under the page's policy; markup may not. */
export function place(element, left, right = null) {
  element.style.left = `${100 * left}%`;
  if (right !== null) element.style.width = `${100 * (right - left)}%`;
  return element;
}

/** Terms and their descriptions, as the children of a dl. A description that is null is left out. */
export const facts = (rows) =>
  rows
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([term, ...value]) => h("div", {}, h("dt", {}, term), h("dd", {}, ...value)));

/** A table with headings for columns and rows. On a narrow screen it scrolls, also by the keyboard. */
export const table = (title, head, rows) => [
  h("p", { class: "caption", "aria-hidden": "true" }, title),
  h(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": `Table: ${title}` },
    h(
      "table",
      { "aria-label": title },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          head.map((text) => h("th", { scope: "col" }, text)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map(([first, ...rest]) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, first),
            rest.map((cell) => h("td", {}, cell)),
          ),
        ),
      ),
    ),
  ),
];

const minus = (text) => text.replace("-", "−");

/** A number with so many decimals, and a real minus sign. */
export const number = (value, decimals = 2) => minus(value.toFixed(decimals));

/** A whole number with commas. */
export const whole = (value) => minus(Math.round(value).toLocaleString("en"));

/** An interval, such as "0.80 to 0.95". */
export const interval = (low, high, decimals = 2) => `${number(low, decimals)} to ${number(high, decimals)}`;

/** A figure with its interval, if that is known. */
export const figure = ({ value, low, high }, decimals = 2) =>
  typeof low === "number" && typeof high === "number"
    ? `${number(value, decimals)} (${interval(low, high, decimals)})`
    : number(value, decimals);

/** One thing or several: "1 token", "3 tokens". */
export const count = (amount, thing) => `${whole(amount)} ${thing}${amount === 1 ? "" : "s"}`;

/**
 * Make a box with a chart as wide as the box. It is drawn again when the width changes, so that its text keeps its
 * size, and by box.redraw() when its numbers change.
 */
export function responsive(draw) {
  const box = h("div", { class: "chart" });
  let last = 0;
  box.redraw = () => {
    last = Math.floor(box.clientWidth);
    if (last) box.replaceChildren(draw(last));
  };
  new ResizeObserver(() => Math.floor(box.clientWidth) !== last && box.redraw()).observe(box);
  return box;
}
