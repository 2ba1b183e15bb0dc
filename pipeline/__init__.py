"""The computations: features, index, retrieval. Never imports celery, kombu or redis."""
