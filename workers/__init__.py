"""Running the pipeline: Celery tasks, Redis, the command line. No numpy arithmetic."""
