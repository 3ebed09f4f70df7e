"""What users of similar servers and trainers reported, and what attacks broke, as inputs with the right behaviour.

A module covers one kind of input: requests, text, sizes, connections, access, engines, models, training rows. Each test
says in its name what a user may rely on. Cases that only a real engine can show are in ``tests/integration``.
"""
