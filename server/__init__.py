"""Server for InfAlign checkpoints: best-of-N and worst-of-N decoding on calibrated rewards, with vLLM engines.

For each request the server draws N candidates from the policy, scores them with one or more reward models, and ranks
them. A reward is reported together with its quantile: the share of the reference model's rewards for the same prompt
that lie below it. The reference rewards are the prompt's calibration.

The sub-packages depend on each other in one direction only, from the first to the last:

- ``observability``: logs, metrics, traces
- ``access``: API keys, roles and limits
- ``engines``: the models that generate and score
- ``protocol``: bodies of requests and answers
- ``decoding``: drawing, scoring and ranking candidates
- ``middleware``: what every HTTP request passes through
- ``routes``: the HTTP endpoints
"""
