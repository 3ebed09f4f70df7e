// What theory says of N answers of the reference. The server says the same in an answer; this is for before it.

/** The quantile that the selected one has on average, and the largest KL divergence, in nats. */
export function theory(kind, n) {
  return {
    n,
    expected_quantile: kind === "worst" ? 1 / (n + 1) : n / (n + 1),
    kl_bound: Math.log(n) - (n - 1) / n,
  };
}
