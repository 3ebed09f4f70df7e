// A plain chart in SVG: a frame with two axes, which others draw into.

import { s } from "./dom.js";

const MARGIN = { left: 46, top: 12, bottom: 40 };

/**
 * Make an empty chart.
 * @param {object} options - width, height, x and y as [least, most], ticks of each, their labels, a title, and
 *   right, the room beside the frame.
 * @returns {object} svg, its two scales x and y, and add, which draws into it.
 */
export function chart({
  width,
  height,
  x: [x0, x1],
  y: [y0, y1],
  xTicks,
  yTicks,
  xLabel,
  yLabel,
  title,
  right: rightMargin = 14,
}) {
  const right = width - rightMargin;
  const bottom = height - MARGIN.bottom;
  const x = (value) => MARGIN.left + ((value - x0) / (x1 - x0)) * (right - MARGIN.left);
  const y = (value) => bottom - ((value - y0) / (y1 - y0)) * (bottom - MARGIN.top);
  const svg = s(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": title },
    xTicks.map((tick) => [
      s("line", { class: "grid", x1: x(tick), x2: x(tick), y1: MARGIN.top, y2: bottom }),
      s("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, plain(tick)),
    ]),
    yTicks.map((tick) => [
      s("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick) }),
      s("text", { x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" }, plain(tick)),
    ]),
    s("line", { class: "base", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
    s("text", { x: (MARGIN.left + right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel),
    yLabel &&
      s(
        "text",
        {
          x: 12,
          y: (MARGIN.top + bottom) / 2,
          "text-anchor": "middle",
          transform: `rotate(-90 12 ${(MARGIN.top + bottom) / 2})`,
        },
        yLabel,
      ),
  );
  return { svg, x, y, add: (...elements) => svg.append(...elements) };
}

/** A number as short as it is. */
export const plain = (value) => String(Number(value.toFixed(4))).replace("-", "−");

/** A line through points of a chart. */
export const line = ({ x, y }, points, name) =>
  s("polyline", { class: name, points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") });
