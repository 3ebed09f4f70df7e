// The API key. It is kept for this tab only, and sent in a header only.

const NAME = "infalign-key";

/** Storage may be turned off in the browser. The key then lasts until the page is loaded again. */
function attempt(work) {
  try {
    return work();
  } catch {
    return null;
  }
}

export const key = {
  value: attempt(() => sessionStorage.getItem(NAME)) ?? "",

  /** Keep another key, or none. */
  keep(value) {
    this.value = value;
    attempt(() => (value ? sessionStorage.setItem(NAME, value) : sessionStorage.removeItem(NAME)));
  },
};
