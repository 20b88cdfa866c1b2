"""A guarded model behind an OpenAI-compatible endpoint, and in the terminal."""
