"""Fine-tuning with frozen neurons, through TRL."""
