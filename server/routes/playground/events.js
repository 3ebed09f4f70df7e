// Reads server-sent events from the body of a POST, for which browsers have no reader: EventSource can only GET.

/**
 * Yield [name, data] for each event with JSON data. Comments, which keep the connection open, are left out.
 * @param {ReadableStream<Uint8Array>} body - The body of the response.
 * @param {() => void} heard - Called whenever bytes arrive.
 */
export async function* read(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s, 2)));
        if (fields.data) yield [fields.event ?? "message", JSON.parse(fields.data)];
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // closes the connection, which makes the server stop
  }
}
