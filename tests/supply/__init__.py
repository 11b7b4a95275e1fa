"""What the product is made of, and whether it is known to be bad: `make audit-code audit-dependencies sbom`."""
