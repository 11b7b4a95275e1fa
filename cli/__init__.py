"""The command-line tool. Each command imports only what it needs, so that each works with only its extra installed."""

from cli.app import main

__all__ = ["main"]
