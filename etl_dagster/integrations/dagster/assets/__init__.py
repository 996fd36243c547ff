"""The assets of a pipeline, as specifications, as a decorator, and as a job of several steps."""
