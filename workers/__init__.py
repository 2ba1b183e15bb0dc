"""WHERE, WHEN and HOW OFTEN: Celery tasks, Redis, the command line. No numpy arithmetic."""
