"""Where a model comes from: what is written down beside all that is made, and the tree from a model back to its raw sources."""
