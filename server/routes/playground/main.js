// Starts the page: asks the server who we are and what we may do, and hands that to the parts.

import { get } from "./api.js";
import { startAsk } from "./ask.js";
import { showBundle } from "./bundle.js";
import { byId, h } from "./dom.js";
import { showFailure } from "./failures.js";
import { offer } from "./form.js";
import { key } from "./key.js";
import { startMetrics } from "./metrics.js";
import { showStory } from "./story.js";
import { startTabs } from "./tabs.js";

const PAUSE = 3000; // milliseconds between two questions whether the engines are up

let turn = 0; // counts the sessions, so that what an earlier one waits for is dropped

async function load() {
  turn += 1;
  byId("ask").disabled = true;
  byId("notice").replaceChildren();
  try {
    const session = await get("v1/session");
    const isAnonymous = session.caller === "anonymous";
    byId("who").textContent = isAnonymous
      ? "This server needs no key."
      : `Key ${session.caller}: ${session.roles.join(", ")}`;
    byId("key").hidden = isAnonymous;
    offer(session);
    showBundle(session);
    showStory(session);
    waitUntilReady(turn);
  } catch (error) {
    for (const id of ["panel-bundle", "panel-story", "samples"]) byId(id).replaceChildren();
    const isRefused = error.status === 401;
    byId("who").textContent = isRefused ? "No valid key" : "Not connected";
    byId("key").open = isRefused;
    byId("key").hidden = false;
    if (isRefused && !key.value)
      byId("notice").append(h("p", { class: "welcome" }, "This server needs a key. Enter one above."));
    else showFailure(byId("notice"), error, "", isRefused ? null : load);
  }
}

/** Say that the engines are not up, as long as they are not. */
async function waitUntilReady(since) {
  try {
    await get("ready");
    if (since === turn) byId("notice").replaceChildren();
  } catch (error) {
    if (since !== turn) return;
    if (!byId("notice").firstChild) showFailure(byId("notice"), error, "This page looks again by itself.");
    setTimeout(() => since === turn && waitUntilReady(since), PAUSE);
  }
}

function startKey() {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.keep(byId("key-input").value.trim());
    byId("key-input").value = "";
    byId("key").open = false;
    load();
  });
  byId("key-forget").addEventListener("click", () => {
    key.keep("");
    location.reload(); // so that nothing stays on the page that the key has shown
  });
}

startTabs();
startAsk();
startKey();
startMetrics();
load();
