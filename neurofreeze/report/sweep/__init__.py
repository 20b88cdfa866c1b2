"""The runs of a sweep side by side: one table, one figure."""
