import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_locust_prints_completions_per_second(server: str) -> None:
    command = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--only-summary"]
    command += ["-u", "4", "-r", "4", "-t", "8s", "--host", server]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rate = re.search(r"(\d+) completions in [\d.]+ s: ([\d.]+) completions/s", done.stdout)
    assert rate
    assert int(rate[1]) >= 8
    assert "/v1/best-of-n" in done.stdout + done.stderr
