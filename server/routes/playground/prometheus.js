// Reads Prometheus' text format, as far as this page needs it.

const LINE = /^(infalign_\w+)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Read a text into samples with a name, labels and a value. Only the server's own metrics are kept. */
export function parse(text) {
  return text.split("\n").flatMap((line) => {
    const match = LINE.exec(line);
    if (!match) return [];
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    return [{ name: match[1], labels, value: Number(match[3].replace("+Inf", "Infinity")) }];
  });
}

/** Sum a metric over the samples that have the labels a function wants. */
export const total = (samples, name, wants = () => true) =>
  samples.filter((each) => each.name === name && wants(each.labels)).reduce((sum, each) => sum + each.value, 0);

/** The histogram of a metric: [upper end, count in the bucket] in order, over all its other labels. */
export function buckets(samples, name, wants = () => true) {
  const sums = new Map();
  for (const { labels, value } of samples.filter((each) => each.name === `${name}_bucket` && wants(each.labels))) {
    const end = Number(labels.le.replace("+Inf", "Infinity"));
    sums.set(end, (sums.get(end) ?? 0) + value);
  }
  const cumulative = [...sums].sort(([a], [b]) => a - b);
  return cumulative.map(([end, value], i) => [end, value - (i ? cumulative[i - 1][1] : 0)]);
}

/** The value that a share of a histogram lies below, by interpolation in its bucket; null without observations. */
export function percentile(histogram, share) {
  const all = histogram.reduce((sum, [, value]) => sum + value, 0);
  if (!all) return null;
  let below = 0;
  let start = 0;
  for (const [end, value] of histogram) {
    if (below + value >= share * all)
      return Number.isFinite(end) ? start + ((share * all - below) / value) * (end - start) : start;
    below += value;
    start = end;
  }
  return start;
}
