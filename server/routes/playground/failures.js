// Shows what went wrong in plain words.

import { h } from "./dom.js";

/**
 * Show a failure in a box.
 * @param {HTMLElement} box - Where. It has the role alert, so a screen reader says it.
 * @param {Error} error - A Failure of api.js, or anything unexpected.
 * @param {string} more - What else there is to say.
 * @param {() => void} [again] - What to do if the user wants to try again.
 */
export function showFailure(box, error, more = "", again = null) {
  const said = [error.detail ?? String(error), more].filter(Boolean).join(" ");
  const title = "detail" in error ? error.message : "The page failed. This is a mistake in it.";
  const button = again && h("button", { type: "button" }, "Try again");
  button?.addEventListener("click", again);
  box.replaceChildren(h("div", { class: "error" }, h("strong", {}, title), " ", h("p", {}, said), button));
}
