"""The workbench: campaigns that draw many samples from a server, what they show, and batches over files.

It talks to a server over HTTP, and imports neither ``server`` nor ``training``.
"""
