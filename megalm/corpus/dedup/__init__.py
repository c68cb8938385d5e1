"""De-duplication: exact, of lines, and near-duplicates by MinHash, as stages whose memory does not grow with the corpus."""
