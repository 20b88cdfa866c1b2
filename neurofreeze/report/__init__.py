"""The report: a self-contained HTML file that says what was frozen, what came of it and how to repeat it."""
