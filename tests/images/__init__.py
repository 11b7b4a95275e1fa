"""Builds both images, looks into them and scores a scan with them: `make images`."""
