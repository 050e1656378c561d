"""Training: stages, steps, schedules, checkpoints and metrics. It imports growth; growth knows nothing of it."""
