"""Reinforcement learning from rewards: a model answers prompts and learns from what its answers are worth."""
