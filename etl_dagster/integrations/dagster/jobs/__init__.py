"""Jobs and schedules of a pipeline."""
