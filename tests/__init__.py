"""Tests, in the folders of what they test; a package, so that worker processes find test functions by name."""
