"""Where a run's numbers go: metrics.jsonl always, a tracker beside it, result.json at the end."""
