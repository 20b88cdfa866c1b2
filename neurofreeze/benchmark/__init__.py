"""Benchmarks: arms x seeds x fine-tuning sets from one checkpoint, each a cell that is trained and measured once."""
