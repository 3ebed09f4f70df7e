// The first tab: asks a question, shows the candidates as they come, and then which one is selected.

import { Failure, post } from "./api.js";
import { Axis, spoken } from "./axis.js";
import { byId, count, facts, h, interval, number } from "./dom.js";
import { showFailure } from "./failures.js";
import { theory } from "./theory.js";

const SHOWN_SAMPLES = 3;
const SCOPES = {
  prompt: (samples) => `${count(samples, "answer")} of the reference to this prompt`,
  predicted: (samples) => `answers predicted for this prompt, worth ${count(samples, "drawn one")}`,
  global: (samples) => `${count(samples, "answer")} of the reference to all calibrated prompts, so read it with care`,
};
const STOPS = { target: "an answer was good enough", cap: "all N were drawn", greedy: "all would be the same" };

let session = null;
let running = null;

const kind = () => document.querySelector('input[name="kind"]:checked').value;
const has = (role) => session.roles.includes(role) || session.roles.includes("admin");
const drawn = () => (kind() === "standard" ? 1 : Number(byId("n").value));

/** Offer what the session allows, and nothing else. */
export function offer(found) {
  session = found;
  const names = found.models.map((model) => model.id);
  const options = names.length > 1 ? ["auto", ...names] : names;
  byId("model").replaceChildren(...options.map((name) => h("option", { value: name }, nameOf(name, found.models))));
  byId("model-field").hidden = options.length < 2;
  offerSamples(found.prompts ?? []);
  offerCalibrations(found.bundle);
  offerRoles(found);
  limitN();
}

const nameOf = (name, models) =>
  name === "auto" ? "auto: the one aligned most nearly for this" : `${name}, aligned for ${models.find((m) => m.id === name).procedure}`;

function offerSamples(prompts) {
  const buttons = prompts.slice(0, SHOWN_SAMPLES).map((text) => {
    const button = h("button", { type: "button" }, text);
    button.addEventListener("click", () => {
      byId("prompt").value = text;
      byId("prompt").focus();
    });
    return button;
  });
  byId("samples").replaceChildren(...buttons);
  byId("samples").hidden = !buttons.length;
}

function offerCalibrations(bundle) {
  const samples = bundle?.samples ?? "K";
  const rows = [["true", "this prompt"], ["predict", "this prompt, by a prediction"], ["false", "this prompt, or all if it is not calibrated"]];
  const notes = {
    true: `For a new prompt, the server first draws ${samples} answers of the reference, once.`,
    predict: "The prefix scorer predicts how the reference would do here. Nothing is drawn for it.",
    false: "Nothing is drawn for it. Prompts differ, so a comparison with all of them says little.",
  };
  const offered = rows.filter(([value]) => value !== "predict" || canPredict(bundle));
  byId("calibrate").replaceChildren(...offered.map(([value, text]) => h("option", { value }, text)));
  const explain = () => (byId("calibrate-note").textContent = notes[byId("calibrate").value]);
  byId("calibrate").onchange = explain;
  explain();
}

const canPredict = (bundle) => bundle?.has_scorer && bundle.reward_models.length === 1;

function offerRoles({ caller, roles }) {
  const worst = document.querySelector('input[value="worst"]');
  worst.disabled = !has("probe");
  if (worst.disabled && worst.checked) document.querySelector('input[value="best"]').checked = true;
  byId("roles-note").hidden = has("probe") || !has("generate");
  byId("roles-note").textContent =
    `Worst of N is not available: it takes a key with the role probe, and ${caller} has ${roles.join(", ")}. ` +
    "The server sends this key no candidate from the lower half, so you see the upper half only.";
  byId("ask").disabled = !has("generate");
  byId("status").textContent = has("generate")
    ? "Ask something. Each answer will appear here as soon as it is drawn."
    : `Asking takes a key with the role generate, and ${caller} has ${roles.join(", ")}.`;
}

/** N is limited by the server, and for some models by a judge's record. */
function limitN() {
  if (!session) return;
  const family = kind() === "worst" ? "worst-of-n" : "best-of-n";
  const model = session.models.find(({ id }) => id === byId("model").value);
  byId("n").max = model?.max_n[family] ?? session.max_n;
  if (Number(byId("n").value) > Number(byId("n").max)) byId("n").value = byId("n").max;
  byId("numbers").hidden = byId("target-note").hidden = kind() === "standard";
  byId("target-note").textContent =
    kind() === "worst" ? "Optional. Draws stop when an answer is as low as that." : "Optional. Draws stop when an answer is good enough.";
}

function makeBody() {
  const n = drawn();
  const target = kind() === "standard" ? NaN : byId("target").valueAsNumber;
  const body = {
    messages: [{ role: "user", content: byId("prompt").value }],
    model: byId("model").value,
    n,
    stream: true,
    calibrate: { true: true, false: false }[byId("calibrate").value] ?? "predict",
  };
  if (!Number.isNaN(target)) body.target_quantile = target;
  if (has("probe")) body.return_candidates = true;
  else if (Number.isNaN(target)) body.top = Math.max(1, Math.floor(n / 2)); // all that this key may see
  return body;
}

async function ask() {
  if (running) return;
  const controller = new AbortController();
  const start = performance.now();
  const body = makeBody();
  const run = { body, kind: kind(), start, done: 0, axis: new Axis(kind() === "worst", theory(kind(), body.n).expected_quantile) };
  running = controller;
  setBusy(true);
  clearResults();
  byId("error").replaceChildren();
  showTheory(theory(run.kind, body.n), run);
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
  if (hidden) byId("drawn").append(h("p", { class: "note" }, `${count(hidden, "candidate")} not shown: the server sends this key the upper half at most.`));
}

function describe(answer, run, seconds) {
  const [selected] = answer.selected;
  const { stopping, missing, usage, calibration } = answer;
  const failed = missing ? Object.values(missing.reasons).reduce((sum, each) => sum + each, 0) : 0;
  const number_drawn = stopping?.drawn ?? answer.theory.n;
  return facts([
    ["Quantile", h("b", {}, number(selected.quantile)), ` (${interval(selected.quantile_low, selected.quantile_high)})`],
    ["Theory for the reference", ...theoryText(answer.theory, run)],
    ["Cost", `${count(number_drawn, "candidate")}, ${count(usage.completion_tokens, "token")}, ${number(seconds, seconds < 1 ? 2 : 1)} s`],
    ["Compared with", SCOPES[calibration.scope](calibration.samples)],
    ["Stopped early", stopping ? `${stopping.drawn} of ${stopping.asked} drawn: ${STOPS[stopping.reason] ?? stopping.reason}` : null],
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

/** Connect the form. */
export function startAsk() {
  byId("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  byId("ask-form").addEventListener("change", limitN);
  byId("cancel").addEventListener("click", () => running?.abort());
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask-form").requestSubmit();
  });
}
