"""Requests that must be refused: (endpoint, body, status, the field the answer names)."""

from typing import Any

ASKED = [{"role": "user", "content": "hello"}]
LONG = [{"role": "user", "content": "word " * 20_000}]
CHAT, TEXT, BEST, WORST, REWARDS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/best-of-n",
    "/v1/worst-of-n",
    "/v1/rewards",
)

BAD: list[tuple[str, Any, int, str]] = [
    (BEST, {"messages": ASKED, "n": 0}, 400, "n"),
    (WORST, {"messages": ASKED, "n": 0}, 400, "n"),
    (BEST, {"messages": ASKED, "n": 100_000}, 400, "n"),
    (BEST, {"messages": ASKED, "n": "8"}, 400, "n"),
    (BEST, {"messages": ASKED, "n": 2, "top": 3}, 400, "top"),
    (BEST, {"messages": []}, 400, "messages"),
    (BEST, {}, 400, "prompt"),
    (BEST, {"messages": ASKED, "prompt": "x"}, 400, "prompt"),
    (BEST, {"prompt": ""}, 400, "prompt"),
    (BEST, {"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
    (BEST, {"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    (BEST, {"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content"),
    (BEST, {"messages": ASKED, "stop": 5}, 400, "stop"),
    (BEST, {"messages": ASKED, "temperature": -1}, 400, "temperature"),
    (BEST, {"messages": ASKED, "top_p": 0}, 400, "top_p"),
    (BEST, {"messages": ASKED, "max_tokens": 10**9}, 400, "messages"),
    (BEST, {"messages": ASKED, "best": 3}, 400, "best"),
    (BEST, {"messages": LONG}, 400, "messages"),
    (WORST, {"prompt": "word " * 20_000}, 400, "prompt"),
    (BEST, {"messages": ASKED, "model": "gpt-4"}, 404, "model"),
    (CHAT, {"messages": ASKED, "best_of": 4, "worst_of": 4}, 400, "worst_of"),
    (CHAT, {"messages": ASKED, "best_of": 0}, 400, "best_of"),
    (CHAT, {"messages": ASKED, "best_of": 100_000}, 400, "best_of"),
    (CHAT, {"messages": ASKED, "n": 4, "best_of": 2}, 400, "best_of"),
    (CHAT, {"messages": ASKED, "n": 0}, 400, "n"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": LONG}, 400, "messages"),
    (CHAT, {"messages": ASKED, "temperature": -1}, 400, "temperature"),
    (CHAT, {"messages": ASKED, "stream": True}, 400, "stream"),
    (CHAT, {"messages": ASKED, "best_off": 4}, 400, "best_off"),
    (CHAT, {"messages": ASKED, "model": "gpt-4"}, 404, "model"),
    (CHAT, {"messages": ASKED, "max_tokens": 3, "max_completion_tokens": 3}, 400, "max_completion_tokens"),
    (TEXT, {"prompt": "x", "worst_of": 100_000}, 400, "worst_of"),
    (TEXT, {"prompt": 3}, 400, "prompt"),
    (TEXT, {}, 400, "prompt"),
    (REWARDS, {"messages": ASKED, "responses": []}, 400, "responses"),
    (REWARDS, {"messages": ASKED, "responses": ["x"] * 100_000}, 400, "responses"),
    (REWARDS, {"messages": ASKED, "responses": ["word " * 20_000]}, 400, "messages"),
    (BEST, b"{not json", 400, "body"),
    (BEST, b"", 400, "body"),
    (BEST, b"[]", 400, "body"),
    (CHAT, b'"text"', 400, "body"),
]
