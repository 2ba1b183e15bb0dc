"""Celery tasks, thin and explicitly named."""
