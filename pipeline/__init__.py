"""WHAT is computed: features, index, retrieval. Never imports celery, kombu or redis."""
