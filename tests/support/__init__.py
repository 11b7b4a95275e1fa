"""What several tests use: servers, collectors, small scans, and ways to interleave processes."""

from tests.support import typechecking

__all__ = ["typechecking"]  # jaxtyping looks it up as an attribute
