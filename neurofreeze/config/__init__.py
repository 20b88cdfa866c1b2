"""The configuration of a run: its schema, and where the YAML files are."""
