"""What docs/results.md says of the study: written from kept rows, and from nothing else."""
