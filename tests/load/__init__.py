"""The gateway under load: `make load`."""
