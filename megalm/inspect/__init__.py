"""Looks into a trained model: nearest tokens, attention maps, what a prediction rests on, what each layer would predict."""
