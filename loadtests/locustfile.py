"""Best-of-n and worst-of-n against a running server; ``make load`` runs it for a minute.

Prompts come from the help desk of the demo bundle. At the end it prints completions per second: every candidate
counts, not only the selected one. Latencies are in Locust's own table.
"""

import time
from random import Random

from locust import HttpUser, between, events, task
from locust.env import Environment

OPENERS = ("My {} What should I do?", "Can you help? My {}", "Help, my {}")
PROBLEMS = ("laptop gets very hot.", "printer is always offline.", "bicycle has weak brakes.", "fridge hums all night.")


class Tally:
    """Candidates and tokens received since the run began."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.candidates = 0
        self.tokens = 0


@events.test_start.add_listener
def begin(environment: Environment, **_: object) -> None:
    """A fresh tally for each run."""
    environment.tally = Tally()


@events.test_stop.add_listener
def finish(environment: Environment, **_: object) -> None:
    """Print what came back per second."""
    tally: Tally = environment.tally
    seconds = time.monotonic() - tally.started
    print(
        f"\n{tally.candidates} completions in {seconds:.1f} s: {tally.candidates / seconds:.1f} completions/s, "
        f"{tally.tokens / seconds:.0f} tokens/s\n"
    )


class Developer(HttpUser):
    """Asks for the best of 8, and now and then for the worst of 8."""

    wait_time = between(0, 0.1)

    def on_start(self) -> None:
        """A random source of its own for each user."""
        self.random = Random()

    @task(3)
    def best_of_n(self) -> None:
        """POST /v1/best-of-n."""
        self._decode("best-of-n")

    @task(1)
    def worst_of_n(self) -> None:
        """POST /v1/worst-of-n."""
        self._decode("worst-of-n")

    def _decode(self, endpoint: str) -> None:
        question = self.random.choice(OPENERS).format(self.random.choice(PROBLEMS))
        body = {"messages": [{"role": "user", "content": question}], "n": 8}
        with self.client.post(f"/v1/{endpoint}", json=body, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text[:200]}")
                return
            self.environment.tally.candidates += body["n"]
            self.environment.tally.tokens += response.json()["usage"]["completion_tokens"]
