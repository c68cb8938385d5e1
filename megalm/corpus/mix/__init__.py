"""Mixing: how much of each source, in which order, and which documents are held out."""
