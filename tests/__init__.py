"""Tests mirror the rooms of the project; `support` has what several of them use."""
