// The quantile axis: a row for each candidate, with a mark and its interval between 0 and 1.

import { count, h, interval, number, place } from "./dom.js";

const TICKS = [0, 0.25, 0.5, 0.75, 1];

/** The list of candidates. Rows stand in the order of their quantiles, what would be selected first. */
export class Axis {
  /**
   * @param {boolean} isWorst - Whether the lowest comes first.
   * @param {number} expected - The quantile that the selected one of N answers of the reference has on average.
   */
  constructor(isWorst, expected) {
    this.isWorst = isWorst;
    this.rows = new Map();
    this.list = h("ol", { class: "candidates", "aria-label": "Candidates" });
    const scale = h(
      "div",
      { class: "track scale" },
      TICKS.map((tick) => place(h("span", {}, String(tick)), tick)),
    );
    this.label = place(h("span", { class: "expected-label" }), expected);
    const head = h(
      "div",
      { class: "axis-head", "aria-hidden": "true" },
      h("span", {}, "quantile"),
      h("div", {}, this.label, scale),
    );
    this.element = h("div", { class: "axis" }, head, this.list);
    this.expect(expected);
  }

  /** Show where theory expects the selected one. With early stopping that moves. */
  expect(expected) {
    this.expected = expected;
    this.label.textContent = `theory ${number(expected)}`;
    this.label.classList.toggle("to-left", expected > 0.5);
    place(this.label, expected);
    for (const line of this.list.querySelectorAll(".expected")) place(line, expected);
  }

  /** Add a candidate, or what is new of it. One without a quantile is not scored yet, or not shown to this key. */
  put(candidate) {
    const known = { ...this.rows.get(candidate.index)?.candidate, ...candidate };
    const element = row(known, this.expected);
    this.rows.get(known.index)?.element.remove();
    this.rows.set(known.index, { candidate: known, element });
    const after = [...this.rows.values()]
      .filter((other) => other.element !== element && this.#precedes(known, other.candidate))
      .sort((a, b) => (this.#precedes(a.candidate, b.candidate) ? -1 : 1))[0];
    this.list.insertBefore(element, after?.element ?? null);
  }

  #precedes(a, b) {
    const value = ({ reward }) => (reward === undefined ? -Infinity : this.isWorst ? -reward : reward);
    return value(a) === value(b) ? a.index < b.index : value(a) > value(b);
  }

  /** Mark the selected candidate. */
  select(index) {
    const { element } = this.rows.get(index) ?? {};
    if (!element) return;
    element.classList.add("is-selected");
    element.querySelector(".text").prepend(h("strong", { class: "badge" }, "selected"), " ");
  }
}

function row(candidate, expected) {
  const { index, quantile, quantile_low: low, quantile_high: high, reward, completion_tokens: tokens } = candidate;
  const isScored = quantile !== undefined;
  const track = h("div", { class: "track", "aria-hidden": "true" }, place(h("span", { class: "expected" }), expected));
  if (isScored) {
    track.append(place(h("span", { class: "interval" }), low, high), place(h("span", { class: "mark" }), quantile));
  }
  const parts = isScored
    ? [`interval ${interval(low, high)}`, `reward ${number(reward)}`, count(tokens, "token")]
    : [count(tokens, "token"), "its score is not here yet"];
  return h(
    "li",
    { class: isScored ? "candidate" : "candidate is-waiting", "data-index": index },
    h("span", { class: "value" }, h("span", { class: "spoken" }, "quantile "), isScored ? number(quantile) : "…"),
    h(
      "div",
      {},
      h("p", { class: "text" }, spoken(candidate)),
      h(
        "p",
        { class: "meta" },
        [`Candidate ${index + 1}`, ...parts].map((part) => h("span", {}, part)),
      ),
    ),
    track,
  );
}

/** What a candidate says. The text of one that this key may not see is not there. */
export function spoken({ text, tool_calls: calls }) {
  if (text) return text;
  if (calls?.length) return `(calls ${calls.map((call) => call.function.name).join(", ")})`;
  return text === undefined ? "(the server does not show this text)" : "(an empty answer)";
}
