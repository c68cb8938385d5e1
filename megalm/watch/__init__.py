"""Watches over the ranks of a run from within: hangs, and ranks that are slower than their peers."""
