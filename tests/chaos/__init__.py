"""A campaign against a running service: real processes, real faults, and a checker of what was promised.

`python -m tests.chaos --help`, or `make chaos`. docs/promise.md says what is promised and what the campaign does.
"""
