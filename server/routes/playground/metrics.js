// The tab with live numbers. It asks only while somebody can see it.

import { get } from "./api.js";
import { chart } from "./chart.js";
import { byId, count, facts, h, number, responsive, s, table, whole } from "./dom.js";
import { showFailure } from "./failures.js";
import { buckets, parse, percentile, total } from "./prometheus.js";
import { whenShown } from "./tabs.js";

const PAUSE = 3000; // milliseconds between two looks
const HEIGHT = 220;
const NOTHING = "No candidate has been selected yet. Ask something on the first tab.";
const SELECTED = "infalign_selected_quantile";

/** Connect the tab. */
export function startMetrics() {
  const panel = byId("panel-metrics");
  const numbers = h("dl", { class: "facts tiles" });
  const pictures = h("div", {}, h("p", {}, NOTHING));
  const shown = new Map(); // by procedure
  const error = h("div", { role: "alert" });
  const when = h("p", { class: "note" });
  panel.append(
    h("h2", {}, "Live metrics"),
    h(
      "p",
      { class: "lead" },
      "What this server counts since it was started. The numbers are renewed every three seconds while you look.",
    ),
    error,
    numbers,
    pictures,
    when,
  );
  let timer = 0;
  let isAsking = false;

  const look = async () => {
    clearTimeout(timer);
    if (isAsking || panel.hidden || document.hidden) return;
    isAsking = true;
    try {
      const samples = parse(await get("metrics", "text"));
      error.replaceChildren();
      numbers.replaceChildren(...facts(describe(samples)));
      draw(samples, shown, pictures);
      when.textContent = `Seen at ${new Date().toLocaleTimeString()}.`;
    } catch (failure) {
      if (!error.firstChild) showFailure(error, failure, "The numbers below are old. This page looks again by itself.");
    } finally {
      isAsking = false;
      timer = setTimeout(look, PAUSE);
    }
  };
  whenShown(panel, look);
  document.addEventListener("visibilitychange", look);
}

function describe(samples) {
  const seconds = buckets(samples, "infalign_request_seconds");
  const time = (share) => {
    const value = percentile(seconds, share);
    return value === null ? "–" : `${number(value)} s`;
  };
  const isCall = ({ route }) => route?.startsWith("/v1/");
  return [
    ["Engines", total(samples, "infalign_engines_up") ? "up" : "down"],
    ["In flight", whole(total(samples, "infalign_requests_in_flight"))],
    ["Requests under /v1", whole(total(samples, "infalign_requests_total", isCall))],
    ["Refused", whole(total(samples, "infalign_rejected_total"))],
    ["Candidates", whole(total(samples, "infalign_candidates_total"))],
    ["Tokens drawn", whole(total(samples, "infalign_candidate_tokens_total"))],
    ["Decoding, median", time(0.5)],
    ["Decoding, 95% below", time(0.95)],
    ["Memory", `${number(total(samples, "infalign_resident_memory_bytes") / 2 ** 30, 1)} GiB`],
  ];
}

/** Draw a picture for each procedure, or bring it up to date, so that what a user has opened stays open. */
function draw(samples, shown, box) {
  for (const procedure of new Set(
    samples.filter(({ name }) => name === `${SELECTED}_count`).map(({ labels }) => labels.procedure),
  )) {
    if (!shown.size) box.replaceChildren();
    if (!shown.has(procedure)) shown.set(procedure, histogram(procedure, box));
    shown.get(procedure)(buckets(samples, SELECTED, (labels) => labels.procedure === procedure));
  }
}

/** Add a picture to a box. Returns a function that brings it up to date. */
function histogram(procedure, box) {
  const name = `Quantiles of selected candidates, ${procedure}`;
  let bars = [];
  const picture = responsive((width) => paint(width, name, bars));
  const rows = h("div");
  box.append(h("figure", {}, h("h3", {}, name), picture, h("details", {}, h("summary", {}, "As a table"), rows)));
  return (all) => {
    const ends = all.filter(([end]) => Number.isFinite(end));
    bars = ends.map(([end, value], i) => ({ start: i ? ends[i - 1][0] : 0, end, value }));
    picture.redraw();
    const some = bars.filter(({ value }) => value);
    rows.replaceChildren(
      ...table(
        name,
        ["quantile", "candidates"],
        some.map(({ start, end, value }) => [`${number(start)} to ${number(end)}`, whole(value)]),
      ),
    );
  };
}

function paint(width, name, bars) {
  const most = Math.max(1, ...bars.map(({ value }) => value));
  const step = Math.ceil(most / 4);
  const picture = chart({
    width,
    height: HEIGHT,
    x: [0, 1],
    y: [0, most],
    xTicks: [0, 0.25, 0.5, 0.75, 1],
    yTicks: Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step),
    xLabel: "quantile",
    yLabel: "candidates",
    title: `${name}: ${count(
      bars.reduce((sum, { value }) => sum + value, 0),
      "candidate",
    )}`,
  });
  const { x, y, add } = picture;
  add(
    ...bars
      .filter(({ value }) => value)
      .map(({ start, end, value }) =>
        s("rect", {
          class: "bar",
          x: x(start) + 1,
          y: y(value),
          width: x(end) - x(start) - 2,
          height: y(0) - y(value),
        }),
      ),
  );
  return picture.svg;
}
