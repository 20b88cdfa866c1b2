"""Where the stages of a run are executed: in this process, by torchrun's ranks, or by a Slurm job."""
