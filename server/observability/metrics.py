"""Prometheus metrics of one server. They have the prefix ``infalign_``, base units, and a bounded number of labels."""

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Histogram buckets of durations, in seconds."""
QUANTILE = tuple(step / 20 for step in range(1, 21))
"""Histogram buckets of quantiles."""
OVERHEAD = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1)
"""Histogram buckets of the server's own overhead, in seconds."""
COUNT = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Histogram buckets of numbers of candidates, and of waves."""
REGRET = (0.0, 0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1)
"""Histogram buckets of differences of quantiles."""


class Metrics:
    """The metrics of one server, in their own registry, so that several servers can run in one process."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("infalign_requests", "Requests answered.", ("route", "code"), registry=registry)
        self.in_flight = Gauge("infalign_requests_in_flight", "Decoding requests being worked on.", registry=registry)
        self.request_seconds = Histogram(
            "infalign_request_seconds", "Decoding, end to end.", ("procedure",), buckets=LATENCY, registry=registry
        )
        self.generation_seconds = Histogram(
            "infalign_generation_seconds", "Drawing one candidate.", buckets=LATENCY, registry=registry
        )
        self.scoring_seconds = Histogram(
            "infalign_scoring_seconds", "Scoring one candidate.", buckets=LATENCY, registry=registry
        )
        self.prefix_seconds = Histogram(
            "infalign_prefix_seconds",
            "Reading the beginning of one response with the prefix scorer.",
            buckets=LATENCY,
            registry=registry,
        )
        self.prefix_failures = Counter(
            "infalign_prefix_failures",
            "Beginnings of responses that the prefix scorer failed to read.",
            registry=registry,
        )
        self.rejected = Counter(
            "infalign_rejected", "Requests refused before any work, by reason.", ("reason",), registry=registry
        )
        self.engine_failures = Counter(
            "infalign_engine_failures", "Engines found dead or hung while the server was up.", registry=registry
        )
        self.own_overhead = Histogram(
            "infalign_own_overhead_seconds",
            "Answering a decoding request while no engine is at work for it.",
            ("procedure",),
            buckets=OVERHEAD,
            registry=registry,
        )
        self.n_requested = Histogram(
            "infalign_n_requested", "N of a request.", ("procedure",), buckets=COUNT, registry=registry
        )
        self.beyond_judge = Counter(
            "infalign_beyond_judge",
            "Requests whose N is larger than a judge supports, by what was done.",
            ("procedure", "action"),
            registry=registry,
        )
        self.stops = Counter(
            "infalign_stops",
            "Answers to requests with a stopping rule, by why draws stopped.",
            ("procedure", "reason"),
            registry=registry,
        )
        self.waves = Histogram(
            "infalign_waves", "Waves of a request with a stopping rule.", buckets=COUNT, registry=registry
        )
        self.saved_draws = Counter(
            "infalign_saved_draws", "Candidates below N that stopping rules left undrawn.", registry=registry
        )
        self.rejected_candidates = Counter(
            "infalign_rejected_candidates",
            "Candidates that early rejection did not draw to the end.",
            ("procedure",),
            registry=registry,
        )
        self.saved_tokens = Counter(
            "infalign_saved_tokens",
            "Estimated tokens that were not drawn, if candidates have the mean length of the request's complete ones.",
            ("by",),
            registry=registry,
        )
        self.regret = Histogram(
            "infalign_regret",
            "Best quantile of all N candidates minus that of the selected one, for a share of requests that drew less.",
            ("by",),
            buckets=REGRET,
            registry=registry,
        )
        self.candidates = Counter(
            "infalign_candidates", "Candidates drawn and scored.", ("procedure",), registry=registry
        )
        self.candidate_tokens = Counter(
            "infalign_candidate_tokens",
            "Tokens of all candidates, and of those that were not drawn to the end.",
            ("procedure",),
            registry=registry,
        )
        self.aborted_candidates = Counter(
            "infalign_aborted_candidates", "Candidates abandoned or failed before they were scored.", registry=registry
        )
        self.reward_failures = Counter(
            "infalign_reward_failures",
            "Responses that a function, a service or a judge by a rubric gave no reward for.",
            ("reward",),
            registry=registry,
        )
        self.judge_tokens = Counter(
            "infalign_judge_tokens",
            "Tokens that a judge by a rubric has read and written.",
            ("reward",),
            registry=registry,
        )
        self.judge_cached_tokens = Counter(
            "infalign_judge_cached_tokens",
            "Tokens of these that were not read again, because the prefix cache had them.",
            ("reward",),
            registry=registry,
        )
        self.ties = Counter(
            "infalign_reward_ties",
            "Candidates whose reward equals that of another of their request.",
            registry=registry,
        )
        self.quantiles = Histogram(
            "infalign_candidate_quantile",
            "Quantiles of all candidates.",
            ("scope",),
            buckets=QUANTILE,
            registry=registry,
        )
        self.selected_quantiles = Histogram(
            "infalign_selected_quantile",
            "Quantiles of selected candidates.",
            ("procedure", "scope"),
            buckets=QUANTILE,
            registry=registry,
        )
        self.calibrations = Counter(
            "infalign_calibration_lookups",
            "Calibrations used, by where they came from.",
            ("scope", "source"),
            registry=registry,
        )
        self.calibrations_in_progress = Gauge(
            "infalign_calibrations_in_progress", "Prompts whose reference draws are under way.", registry=registry
        )
        self.calibration_seconds = Histogram(
            "infalign_calibration_seconds",
            "Drawing and scoring the reference responses of one prompt.",
            buckets=(*LATENCY, 300, 600),
            registry=registry,
        )
        self.budget_prompts = Counter(
            "infalign_budget_prompts", "Prompts that a budget of draws was split over.", registry=registry
        )
        self.store_bytes = Gauge(
            "infalign_calibration_store_bytes", "Size of the file of calibrations drawn on demand.", registry=registry
        )
        self.store_errors = Counter(
            "infalign_calibration_store_errors",
            "Failed reads and writes of the file of calibrations.",
            registry=registry,
        )
        self.drift = Gauge(
            "infalign_quantile_drift",
            "Kolmogorov's distance of served candidates' quantiles from what the bundle predicts.",
            ("model",),
            registry=registry,
        )
        self.drift_samples = Gauge(
            "infalign_quantile_drift_samples", "Candidates that drift is measured on.", ("model",), registry=registry
        )
        self.up = Gauge(
            "infalign_engines_up",
            "1 when the engines can answer; those that are started when they are needed do not count.",
            registry=registry,
        )
        memory = Gauge(
            "infalign_resident_memory_bytes",
            "Resident memory of the server and its engines; pages that they share count once for each.",
            registry=registry,
        )
        memory.set_function(resident_memory)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format, followed by vLLM's, which are in the default registry."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)


def resident_memory() -> int:
    """Return the resident memory of this process and its descendants, in bytes."""
    parent = psutil.Process()
    total = 0
    for process in (parent, *parent.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
