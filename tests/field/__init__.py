"""What users of similar servers and trainers reported, and what attacks broke, as inputs with the right behaviour.

A module covers one kind of input, mostly as a table; each test says in its name what a user may rely on.

requests      bodies that OpenAI's and other clients send, field by field; random ones beside them (random_requests)
text          special tokens that someone types, chat templates that refuse
sizes         long prompts, many responses, responses that grow when they are read again
schemas       JSON schemas: limits, what cannot be compiled
numbers       numbers of thousands of digits
connections   silent, slow and broken clients; too many of them; signals
log_lines     text that would break a log line
access        what a key may see, what is audited
browsers      hosts, origins, headers
engines       draws that fail, engines that die or hang
models        checkpoints that do not fit, texts with two rewards
rows          training files and rows
compute       memory of a training pass, what a stage depends on

Cases that only a real engine can show are in ``tests/integration``.
"""
