// Calls of the server. Addresses are relative to this file, so that the page works behind a path prefix.

import { read } from "./events.js";
import { key } from "./key.js";

const SILENCE = 60_000; // milliseconds without a byte of an open stream, in which the server sends several pings
const PATIENCE = 20_000; // milliseconds that a short answer may take

const address = (path) => new URL(`../${path}`, import.meta.url);

/** A failure in plain words: what happened, what the server said of it, and what to do. */
export class Failure extends Error {
  constructor(title, detail = "", status = 0) {
    super(title);
    this.detail = detail;
    this.status = status;
  }
}

const TITLES = {
  400: "The server does not accept the request.",
  401: "The server needs a valid key.",
  403: "This key may not do that.",
  404: "The server does not know that.",
  408: "The request took too long to arrive.",
  413: "The question is too long.",
  421: "The server does not answer under this name.",
  429: "The server cannot take another request now.",
  502: "An engine failed.",
  503: "The server is not ready.",
  504: "The time ran out.",
};
const GONE = () =>
  new Failure("The server does not answer.", "It has stopped, or the connection is down. Nothing more will arrive.");

async function refuse(response) {
  const body = await response.json().catch(() => null);
  const said = body?.error?.message ?? `It answered with status ${response.status}.`;
  const wait = response.headers.get("Retry-After");
  const advice = wait ? ` You can try again in ${wait} s.` : "";
  const title = TITLES[response.status] ?? "The server failed.";
  throw new Failure(title, said + (/[.!?]$/.test(said) ? "" : ".") + advice, response.status);
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (path.startsWith("v1/") && key.value) headers.Authorization = `Bearer ${key.value}`;
  try {
    const response = await fetch(address(path), { ...options, headers, credentials: "omit", cache: "no-store" });
    return response.ok ? response : await refuse(response);
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw GONE();
  }
}

/** Get JSON, or text. */
export async function get(path, form = "json") {
  const response = await call(path, { signal: AbortSignal.timeout(PATIENCE) });
  return response[form]().catch(() => Promise.reject(GONE()));
}

/**
 * Post a request that is answered by a stream, and yield its events as [name, data].
 * Throws a Failure if the server refuses, falls silent, or leaves before the stream has ended.
 */
export async function* post(path, body, signal) {
  const watch = new AbortController();
  const either = AbortSignal.any([signal, watch.signal]);
  const headers = { "Content-Type": "application/json" };
  const response = await call(path, { method: "POST", headers, body: JSON.stringify(body), signal: either });
  let timer = 0;
  const restart = () => {
    clearTimeout(timer);
    timer = setTimeout(() => watch.abort(), SILENCE);
  };
  try {
    restart();
    for await (const [name, data] of read(response.body, restart)) {
      if (name === "error") throw new Failure("The server failed while it answered.", data.error?.message ?? "");
      yield [name, data];
    }
  } catch (error) {
    if (error instanceof Failure || signal.aborted) throw error;
    throw GONE();
  } finally {
    clearTimeout(timer);
  }
}
