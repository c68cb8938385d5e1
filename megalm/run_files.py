"""Names of the files in a run directory, known to what writes them and to what reads them; imports nothing."""

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
LINEAGE = "lineage.json"
SAMPLES = "samples.jsonl"
ROLLOUTS = "rollouts.jsonl"
CLASSIFICATION = "classification.json"
REWARD = "reward.json"
