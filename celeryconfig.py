"""The settings of `workers.celery_settings`, where Celery looks by itself in this folder."""

from __future__ import annotations

from workers.celery_settings import settings_of_environment

globals().update(settings_of_environment())
