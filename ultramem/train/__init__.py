"""Training on one machine: the run's configuration, the loop, checkpoints and measurements."""
