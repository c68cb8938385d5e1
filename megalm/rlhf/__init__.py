"""Alignment by reinforcement learning: prompts, answers of the model, rewards, and what it learns from them."""
