"""Where the stages of a run are executed: in this process, by torchrun's ranks, or by a Slurm job.

`submit.submit` is the one way there; `launch` is the same from Python; `sweep` is it for many runs at once.
"""
