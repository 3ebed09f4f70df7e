// The first tab: asks a question, shows the candidates as they come, and then which one is selected.

import { Failure, post } from "./api.js";
import { Axis, spoken } from "./axis.js";
import { byId, count, facts, h, interval, number } from "./dom.js";
import { showFailure } from "./failures.js";
import { chosenKind, has, makeBody, startForm } from "./form.js";
import { theory } from "./theory.js";

const SCOPES = {
  prompt: (samples) => `${count(samples, "answer")} of the reference to this prompt`,
  predicted: (samples) => `answers predicted for this prompt, worth ${count(samples, "drawn one")}`,
  global: (samples) => `${count(samples, "answer")} of the reference to all calibrated prompts, so read it with care`,
};
const STOPS = { target: "an answer was good enough", cap: "all N were drawn", greedy: "all would be the same" };

let running = null;

async function ask() {
  if (running) return;
  const controller = new AbortController();
  const start = performance.now();
  const [kind, body] = [chosenKind(), makeBody()];
  const expected = theory(kind, body.n);
  const run = { kind, body, start, done: 0, axis: new Axis(kind === "worst", expected.expected_quantile) };
  running = controller;
  setBusy(true);
  clearResults();
  byId("error").replaceChildren();
  showTheory(expected, run);
  byId("drawn").append(run.axis.element);
  byId("progress").max = body.n;
  byId("progress").value = 0;
  byId("status").textContent = "Waiting for the first answer. A prompt that is new takes longer.";
  try {
    let answer = null;
    const path = run.kind === "worst" ? "v1/worst-of-n" : "v1/best-of-n";
    for await (const [name, data] of post(path, body, controller.signal)) {
      if (name === "candidate") showCandidate(data, run);
      else answer = data;
    }
    if (answer) showAnswer(answer, run);
    else throw brokenOff(run);
  } catch (error) {
    byId("status").textContent = "";
    if (controller.signal.aborted) byId("status").textContent = `Cancelled. The server stops drawing. ${arrived(run)}`;
    else showFailure(byId("error"), error, run.done ? arrived(run) : "");
  } finally {
    running = null;
    setBusy(false);
    if (!run.axis.rows.size) clearResults();
  }
}

const arrived = ({ done, body }) => `${done} of ${count(body.n, "candidate")} had arrived.`;
const brokenOff = (run) => new Failure("The stream broke off before the answer.", run.done ? "" : arrived(run));

function setBusy(isBusy) {
  byId("ask").disabled = isBusy || !has("generate");
  byId("cancel").disabled = byId("progress").hidden = !isBusy;
  byId("results").setAttribute("aria-busy", String(isBusy));
}

function clearResults() {
  for (const id of ["drawn", "facts", "selected"]) byId(id).replaceChildren();
  byId("selected").hidden = true;
}

function showCandidate(event, run) {
  const { event: what, ...candidate } = event;
  run.axis.put(candidate);
  if (what === "scored") run.done += 1;
  byId("progress").value = run.done;
}

function showAnswer(answer, run) {
  const seconds = (performance.now() - run.start) / 1000;
  const [selected] = answer.selected;
  const isSingle = run.kind === "standard";
  for (const candidate of answer.candidates ?? answer.selected) run.axis.put(candidate);
  run.axis.expect(answer.theory.expected_quantile);
  run.axis.select(selected.index);
  byId("selected").replaceChildren(
    h("h2", {}, isSingle ? "The answer" : `The ${run.kind} of ${answer.theory.n}`),
    h("p", { class: "answer" }, spoken(selected)),
  );
  byId("selected").hidden = false;
  byId("facts").replaceChildren(...describe(answer, run, seconds));
  hideUnseen(answer, run);
  const which = isSingle ? "One answer" : `Candidate ${selected.index + 1} is selected`;
  byId("status").textContent = `Done. ${which}, quantile ${number(selected.quantile)}.`;
}

/** The server sends a key without the role probe no candidate of the lower half. Say so in place of their rows. */
function hideUnseen(answer, run) {
  if (has("probe") || run.kind === "standard") return;
  const shown = new Set(answer.selected.map(({ index }) => index));
  let hidden = 0;
  for (const [index, { element }] of run.axis.rows) {
    if (shown.has(index)) continue;
    element.remove();
    hidden += 1;
  }
  if (hidden)
    byId("drawn").append(
      h(
        "p",
        { class: "note" },
        `${count(hidden, "candidate")} not shown: the server sends this key the upper half at most.`,
      ),
    );
}

function describe(answer, run, seconds) {
  const [selected] = answer.selected;
  const { stopping, missing, usage, calibration } = answer;
  const failed = missing ? Object.values(missing.reasons).reduce((sum, each) => sum + each, 0) : 0;
  const candidates = stopping?.drawn ?? answer.theory.n;
  return facts([
    [
      "Quantile",
      h("b", {}, number(selected.quantile)),
      ` (${interval(selected.quantile_low, selected.quantile_high)})`,
    ],
    ["Theory for the reference", ...theoryText(answer.theory, run)],
    [
      "Cost",
      `${count(candidates, "candidate")}, ${count(usage.completion_tokens, "token")}, ${number(seconds, seconds < 1 ? 2 : 1)} s`,
    ],
    ["Compared with", SCOPES[calibration.scope](calibration.samples)],
    [
      "Stopped early",
      stopping ? `${stopping.drawn} of ${stopping.asked} drawn: ${STOPS[stopping.reason] ?? stopping.reason}` : null,
    ],
    ["Failed", failed ? count(failed, "candidate") : null],
    ["Note", answer.greedy ? "The sampling is greedy, so all candidates are the same." : null],
    ["Warning", answer.warnings ? answer.warnings.map(({ message }) => message).join("; ") : null],
  ]);
}

function theoryText({ n, expected_quantile: expected, kl_bound: bound }, run) {
  const formula = { best: "N/(N+1)", worst: "1/(N+1)", standard: "1/2" }[run.kind];
  const kl = n > 1 ? ` The KL is at most ${number(bound)} nats.` : "";
  return [`${number(expected)} on average, which is ${formula}.${kl}`];
}

function showTheory(found, run) {
  byId("facts").replaceChildren(...facts([["Theory for the reference", ...theoryText(found, run)]]));
}

/** Connect the tab. */
export function startAsk() {
  startForm();
  byId("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  byId("cancel").addEventListener("click", () => running?.abort());
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask-form").requestSubmit();
  });
}
