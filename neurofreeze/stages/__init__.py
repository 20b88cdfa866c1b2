"""The stages of a run, in order: align, select, train, verify, evaluate, report. One file each.

Each stage leaves its output and a marker in the run folder; a stage whose marker is there is not run again.
"""
