"""The audit: how much safety is left of a model under an intervention."""
