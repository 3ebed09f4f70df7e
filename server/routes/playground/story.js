// The tab that explains what a quantile is, with real rewards of one prompt of the bundle.

import { chart, line, plain } from "./chart.js";
import { diamond } from "./bundle.js";
import { byId, count, h, interval, number, responsive, s } from "./dom.js";
import { theory } from "./theory.js";

const SIZES = [1, 2, 4, 8, 16];
const RADIUS = 4; // of a dot
const HEAD = 30; // room above the dots, for the mark
const CURVE = 260; // height of the picture of best of N
const STEP = 0.02; // of the density that is drawn

/** Tell the story of a session. */
export function showStory({ story, bundle, caller }) {
  const panel = byId("panel-story");
  if (!story) {
    panel.replaceChildren(h("p", {}, `This takes a key with the role generate, which ${caller} lacks.`));
    return;
  }
  const k = story.rewards.length;
  panel.replaceChildren(
    h("h2", {}, "What is a quantile?"),
    h(
      "p",
      { class: "lead" },
      `A quantile says how many of the reference's answers to the same prompt are worse. These are real rewards from the bundle ${bundle.name}.`,
    ),
    h(
      "ol",
      { class: "story" },
      step(
        "Ask the reference many times",
        story.prompt
          ? [`“${story.prompt}” `, `The reference, the model before training, has answered this ${k} times.`]
          : [`The reference, the model before training, has answered one prompt ${k} times.`],
        "Each dot is the reward of one answer. The scale has no unit, and other prompts have other rewards.",
        responsive((width) => dots(width, story, false)),
      ),
      step(
        "An answer falls among them",
        story.response ? [`“${story.response}”`] : ["Here is one answer."],
        `Its reward is ${number(story.reward)}. That alone does not say whether the answer is good.`,
        responsive((width) => dots(width, story, true)),
      ),
      step(
        "Count the dots that are lower",
        [h("span", { class: "formula" }, `(${plain(story.rank)} + ½) / (${k} + 1) = ${number(story.quantile)}`)],
        explain(story),
        responsive((width) => scale(width, story)),
      ),
      best(story),
    ),
  );
}

/** Say in words what the formula counts. */
function explain({ rewards, reward, rank, quantile, quantile_low: low, quantile_high: high }) {
  const k = rewards.length;
  const lower = rewards.filter((each) => each < reward).length;
  const equal = rewards.filter((each) => each === reward).length;
  const ties = equal ? ` and ${equal} equal, which counts half: together ${plain(rank)}` : "";
  const share = number(100 * quantile, 0);
  return [
    `Of ${k} dots, ${lower} are lower${ties}. So the quantile is ${number(quantile)}: the answer is better than about `,
    `${share}% of the reference's answers. ${k} dots leave some doubt. With 95% probability the true quantile is in `,
    `the interval ${interval(low, high)}.`,
  ];
}

const step = (title, words, more, picture) =>
  h("li", {}, h("h3", {}, title), h("p", {}, words), picture, h("p", { class: "note" }, more));

/** Stack dots that would lie on each other. Returns [reward, height] for each. */
function stack(rewards, gap) {
  const levels = [];
  return rewards.map((reward) => {
    let level = levels.findIndex((last) => reward - last >= gap);
    if (level < 0) level = levels.length;
    levels[level] = reward;
    return [reward, level];
  });
}

function dots(width, { rewards, reward }, showsAnswer) {
  const values = [...rewards, reward];
  const least = Math.min(...values);
  const span = Math.max(...values) - least || 1;
  const [from, to] = [least - span / 20, least + (21 * span) / 20];
  const size = 2 * RADIUS + 1;
  const placed = stack(rewards, (size / (width - 60)) * (to - from));
  const height = HEAD + 52 + size * (1 + Math.max(...placed.map(([, level]) => level)));
  const picture = chart({
    width,
    height,
    x: [from, to],
    y: [0, 1],
    xTicks: ticks(from, to),
    yTicks: [],
    xLabel: "reward",
    title: `The rewards of ${count(rewards.length, "answer")}, from ${number(rewards[0])} to ${number(rewards.at(-1))}${showsAnswer ? `, and the answer's reward ${number(reward)}` : ""}`,
  });
  const { x, y, add } = picture;
  add(
    ...placed.map(([value, level]) =>
      s("circle", {
        class: showsAnswer && value < reward ? "dot is-below" : "dot",
        cx: x(value),
        cy: y(0) - RADIUS - 1 - level * size,
        r: RADIUS,
      }),
    ),
  );
  if (showsAnswer)
    add(
      s("line", { class: "marker", x1: x(reward), x2: x(reward), y1: y(0), y2: 26 }),
      s("path", { class: "point", d: diamond(x(reward), 20, 7) }),
    );
  return picture.svg;
}

function ticks(from, to) {
  const raw = (to - from) / 5;
  const power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 5, 10].find((each) => each * power >= raw) * power;
  const first = Math.ceil(from / size);
  return Array.from({ length: Math.floor(to / size) - first + 1 }, (_, i) =>
    Number(((first + i) * size).toPrecision(6)),
  );
}

function scale(width, { quantile, quantile_low: low, quantile_high: high }) {
  const picture = chart({
    width,
    height: 90,
    x: [0, 1],
    y: [0, 1],
    xTicks: [0, 0.25, 0.5, 0.75, 1],
    yTicks: [],
    xLabel: "quantile",
    title: `The quantile ${number(quantile)} between 0 and 1, with its interval ${interval(low, high)}`,
  });
  const { x, y, add } = picture;
  add(
    s("line", { class: "interval-line", x1: x(low), x2: x(high), y1: y(0.5), y2: y(0.5) }),
    s("path", { class: "point", d: diamond(x(quantile), y(0.5), 7) }),
  );
  return picture.svg;
}

/** The last step: choose N, see which of N draws is the best, and how the law of the best moves right. */
function best({ rewards }) {
  let n = 4;
  let isWorst = false;
  let draws = [];
  const words = h("p", { role: "status" });
  const selected = () => (isWorst ? Math.min(...draws) : Math.max(...draws));
  const mean = () => theory(isWorst ? "worst" : "best", n).expected_quantile;
  const box = responsive((width) => bestOf(width, draws, selected(), mean(), n, isWorst));
  const again = () => {
    draws = pick(rewards.length, n).map((rank) => (rank + 0.5) / rewards.length);
    const who = n === 1 ? "One draw" : `The ${isWorst ? "worst" : "best"} of ${n} draws`;
    words.textContent = `${who} has the quantile ${number(selected())} now, and ${number(mean())} on average.`;
    box.redraw();
  };
  const choices = (name, options, chosen, act) =>
    h(
      "div",
      { class: "choices", role: "group", "aria-label": name },
      options.map(([text, value]) => {
        const input = h("input", { type: "radio", name: `story-${name}`, checked: value === chosen });
        input.addEventListener("change", () => {
          act(value);
          again();
        });
        return h("label", {}, input, h("span", {}, text));
      }),
    );
  const button = h("button", { type: "button" }, "Draw again");
  button.addEventListener("click", again);
  again();
  return h(
    "li",
    {},
    h("h3", {}, "Draw N answers, and select"),
    h(
      "p",
      {},
      "One answer of the reference is anywhere between 0 and 1, with equal probability. The best of N moves right, the worst of N moves left.",
    ),
    h(
      "div",
      { class: "controls" },
      choices(
        "N",
        SIZES.map((size) => [`N = ${size}`, size]),
        n,
        (value) => (n = value),
      ),
      choices(
        "selection",
        [
          ["Best", false],
          ["Worst", true],
        ],
        isWorst,
        (value) => (isWorst = value),
      ),
      button,
    ),
    box,
    words,
    h(
      "p",
      { class: "note" },
      "The dots are draws from the real answers above. The curve is the law of the selected one. For the best it is N·u",
      h("sup", {}, "N−1"),
      ", where u is the quantile.",
    ),
  );
}

/** Pick some of so many, each at most once. */
function pick(total, n) {
  const left = Array.from({ length: total }, (_, i) => i);
  return Array.from({ length: Math.min(n, total) }, () => left.splice(Math.floor(Math.random() * left.length), 1)[0]);
}

function bestOf(width, draws, selected, mean, n, isWorst) {
  const density = (u) => n * (isWorst ? 1 - u : u) ** (n - 1);
  const picture = chart({
    width,
    height: CURVE,
    x: [0, 1],
    y: [0, Math.max(2, n)],
    xTicks: [0, 0.25, 0.5, 0.75, 1],
    yTicks: [],
    xLabel: "quantile",
    title: `${n} draws; the selected one is at ${number(selected)}, the mean is ${number(mean)}`,
  });
  const { x, y, add } = picture;
  const steps = Array.from({ length: Math.round(1 / STEP) + 1 }, (_, i) => i * STEP);
  add(
    line(
      picture,
      steps.map((u) => [u, density(u)]),
      "curve",
    ),
  );
  const isLeft = mean > 0.5;
  add(
    s("line", { class: "expected-line", x1: x(mean), x2: x(mean), y1: y(0), y2: 12 }),
    s(
      "text",
      { x: x(mean) + (isLeft ? -6 : 6), y: 24, "text-anchor": isLeft ? "end" : "start" },
      `mean ${number(mean)}`,
    ),
  );
  add(
    ...draws
      .filter((draw) => draw !== selected)
      .map((draw) => s("circle", { class: "dot", cx: x(draw), cy: y(0) - 10, r: 5 })),
  );
  add(s("path", { class: "point", d: diamond(x(selected), y(0) - 10, 8) }));
  return picture.svg;
}
