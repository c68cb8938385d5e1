"""One training step behind one small interface."""
