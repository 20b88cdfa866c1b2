"""Guarding a model while it answers: gates, which judge every step of it, and filters, which judge the whole."""
