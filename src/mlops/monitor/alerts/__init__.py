"""Alerts: what is wrong, since when, and who was told. `docs/monitoring.md` says what is promised.

rules      what is known of a use case in, a reading of each rule out; pure
book       the state of each alert and of each message about it, shared by all server processes
channels   sends messages, in a process of its own
"""
