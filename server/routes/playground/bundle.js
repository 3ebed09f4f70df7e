// The tab on the bundle: what is served, what was measured of it, and where that lies on the frontier.

import { chart, line } from "./chart.js";
import { byId, count, facts, figure, h, number, responsive, s, table } from "./dom.js";

const HEIGHT = 320;
const NAMES = 84; // room for the names of curves at their ends
const short = (digest) => `${digest.slice(0, 12)}…`;
const source = (origin, digest) => (origin ? `${origin.model}, revision ${short(origin.revision)}` : digest);

/** Show the bundle of a session. */
export function showBundle({ bundle, models, caller }) {
  const panel = byId("panel-bundle");
  if (!bundle) {
    panel.replaceChildren(h("p", {}, `This takes a key with the role generate, which ${caller} lacks.`));
    return;
  }
  const { temperature, top_p: topP, top_k: topK, max_tokens: most } = bundle.sampling;
  const rewards = bundle.reward_models.map(({ name, share, origin }) =>
    [name, bundle.reward_models.length > 1 && ` (share ${number(share)})`, origin && ` from ${source(origin)}`]
      .filter(Boolean)
      .join(""),
  );
  panel.replaceChildren(
    h("h2", {}, `The bundle ${bundle.name}`),
    h(
      "p",
      { class: "lead" },
      "A bundle is what the server was started with: the models, and the rewards that quantiles compare with.",
    ),
    h(
      "dl",
      { class: "facts" },
      facts([
        ["Made", bundle.created.replace("T", " ").replace(/\+00:00$/, " UTC")],
        ["Reference", source(bundle.reference_origin, `digest ${short(bundle.reference)}`)],
        ["Reward model", rewards.join(", ")],
        ["Calibration", `K = ${bundle.samples} rewards for each of ${count(bundle.prompts, "prompt")}`],
        [
          "Sampling law",
          `temperature ${temperature}, top-p ${topP}, ${topK ? `top-k ${topK}, ` : ""}at most ${count(most, "token")}`,
        ],
        ["Prefix scorer", bundle.has_scorer ? "yes, it predicts how an answer will end" : "none"],
      ]),
    ),
    ...models.map(policy),
  );
}

function policy({ id, procedure, max_n: most, card }) {
  const heading = h("h3", {}, `The policy ${id}`);
  if (!card) return h("article", {}, heading, h("p", {}, `Aligned for ${procedure}. The bundle has no record of it.`));
  const aligned =
    card.transformation === null || card.transformation === undefined ? "it is the reference itself" : procedure;
  return h(
    "article",
    {},
    heading,
    h(
      "dl",
      { class: "facts" },
      facts([
        ["Aligned for", aligned],
        ["Transformation", card.transformation],
        ["KL from the reference", card.kl ? `${figure(card.kl)} nats` : null],
        ["β, the KL penalty", card.beta ? number(card.beta, 3) : null],
        ["Largest N", `${most["best-of-n"]} for best, ${most["worst-of-n"]} for worst`],
      ]),
    ),
    frontier(card),
    measured(card.decoded),
    judged(card.judge),
  );
}

/** What was measured, as points, beside what theory allows at each KL, as lines. */
function frontier({ kl, decoded, frontier: curves }) {
  if (!curves.length || !kl) return null;
  const points = curves.map((curve) => decoded.find(({ procedure }) => procedure === curve.procedure));
  const most = curves[0].kl.at(-1);
  const title = curves
    .map(
      ({ procedure }, i) =>
        `${procedure}: ${points[i] ? `measured ${figure(points[i].win_rate)}` : "not measured"}, theory ${number(at(curves[i], kl.value))}`,
    )
    .join("; ");
  const draw = (width) => {
    const picture = chart({
      width,
      height: HEIGHT,
      x: [0, most],
      y: [0.5, 1],
      xTicks: [0, 1, 2, 3, 4].map((i) => (i * most) / 4),
      yTicks: [0.5, 0.6, 0.7, 0.8, 0.9, 1],
      xLabel: "KL from the reference, nats",
      yLabel: "win rate",
      title: `Win rate against KL at ${number(kl.value)} nats. ${title}`,
      right: NAMES,
    });
    curves.forEach((curve, i) => {
      const { x, y } = picture;
      picture.add(
        line(
          picture,
          curve.kl.map((value, j) => [value, curve.win_rate[j]]),
          i ? "curve" : "curve is-dashed",
        ),
      );
      picture.add(s("text", { x: x(most) + 6, y: y(at(curve, most)) + 4, class: "name" }, curve.procedure));
      if (!points[i]) return;
      const { value, low = value, high = value } = points[i].win_rate;
      picture.add(
        s("line", { class: "whisker", x1: x(kl.value), x2: x(kl.value), y1: y(low), y2: y(high) }),
        s("path", { class: "point", d: diamond(x(kl.value), y(value), 6) }),
      );
    });
    return picture.svg;
  };
  return h(
    "figure",
    {},
    responsive(draw),
    h(
      "figcaption",
      {},
      "Lines: the highest win rate that theory allows with exact calibration. Diamonds: what was measured on test prompts.",
    ),
  );
}

/** The win rate of a curve at a KL, between its points. */
function at({ kl, win_rate: wins }, value) {
  const after = kl.findIndex((each) => each >= value);
  if (after <= 0) return wins.at(after);
  const share = (value - kl[after - 1]) / (kl[after] - kl[after - 1]);
  return wins[after - 1] + share * (wins[after] - wins[after - 1]);
}

/** The path of a diamond. */
export const diamond = (x, y, size) => `M${x - size} ${y}L${x} ${y - size}L${x + size} ${y}L${x} ${y + size}Z`;

function measured(decoded) {
  if (!decoded.length) return null;
  const hasJudge = decoded.some((row) => row.judged_win_rate);
  return table(
    "Win rate over the reference, both decoded the same way, with 95% intervals",
    ["decoded by", "by the reward", ...(hasJudge ? ["by the judge"] : [])],
    decoded.map((row) => [
      row.procedure,
      figure(row.win_rate),
      ...(hasJudge ? [row.judged_win_rate ? figure(row.judged_win_rate) : "–"] : []),
    ]),
  );
}

function judged(record) {
  if (!record) return null;
  const families = Object.entries(record.support);
  const sizes = [...new Set(families.flatMap(([, found]) => Object.keys(found.scores)))].sort((a, b) => a - b);
  return h(
    "div",
    {},
    h("h4", {}, "How large N may be"),
    h(
      "p",
      {},
      `The judge ${record.judge} took no part in the training. It scored ${record.draws} candidates to each of ${record.prompts} prompts.`,
    ),
    h(
      "ul",
      {},
      families.map(([family, { n, falls, peak }]) => h("li", {}, `${family}: ${verdict(family, n, falls, peak)}`)),
    ),
    table(
      "The judge's mean score of the selected candidate",
      ["N", ...families.map(([family]) => family)],
      sizes.map((n) => [n, ...families.map(([, { scores }]) => (scores[n] ? figure(scores[n]) : "–"))]),
    ),
  );
}

function verdict(family, n, falls, peak) {
  if (!falls) return `supported up to N = ${n}. Larger N were not looked at.`;
  const change = family.startsWith("worst") ? "rises" : "falls";
  return `supported up to N = ${n}. Beyond it the score ${change}; it is most extreme at N = ${peak}.`;
}
