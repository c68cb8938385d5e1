"""Makes trained models smaller: weights in few bits, weights that are zero, fewer layers; and tells what that costs."""
