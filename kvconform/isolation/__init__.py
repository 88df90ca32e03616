"""Running a connector in a process of its own, so that a hang or a crash costs one scenario and nothing else."""
