"""One file a command; each has main(overrides) -> exit code."""
