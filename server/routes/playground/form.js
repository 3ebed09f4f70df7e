// The form of the first tab: what is offered to whom, and the request that it makes.

import { byId, h } from "./dom.js";

const SHOWN_SAMPLES = 3;

let session = null;

/** Whether the caller has a role, or the role admin, which includes all others. */
export const has = (role) => session.roles.includes(role) || session.roles.includes("admin");

/** What is chosen: best, worst or standard. */
export const chosenKind = () => document.querySelector('input[name="kind"]:checked').value;

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
  name === "auto"
    ? "auto: the one aligned most nearly for this"
    : `${name}, aligned for ${models.find((m) => m.id === name).procedure}`;

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
  const rows = [
    ["true", "this prompt"],
    ["predict", "this prompt, by a prediction"],
    ["false", "this prompt, or all if it is not calibrated"],
  ];
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
  const family = chosenKind() === "worst" ? "worst-of-n" : "best-of-n";
  const model = session.models.find(({ id }) => id === byId("model").value);
  byId("n").max = model?.max_n[family] ?? session.max_n;
  if (Number(byId("n").value) > Number(byId("n").max)) byId("n").value = byId("n").max;
  byId("numbers").hidden = byId("target-note").hidden = chosenKind() === "standard";
  byId("target-note").textContent =
    chosenKind() === "worst"
      ? "Optional. Draws stop when an answer is as low as that."
      : "Optional. Draws stop when an answer is good enough.";
}

/** The request that the form says. */
export function makeBody() {
  const n = chosenKind() === "standard" ? 1 : Number(byId("n").value);
  const target = chosenKind() === "standard" ? NaN : byId("target").valueAsNumber;
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

/** Connect the fields that depend on each other. */
export function startForm() {
  byId("ask-form").addEventListener("change", limitN);
}
