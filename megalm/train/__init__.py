"""The training loop, its callbacks (a file each) and its tasks (a file each)."""
