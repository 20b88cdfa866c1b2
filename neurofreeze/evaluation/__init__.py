"""What became of safety and utility: refusals, over-refusal, refusal margin, held-out loss, with honest intervals."""
