"""Names of workers, as Celery's command line makes them."""

from __future__ import annotations

from celery.utils.nodenames import default_nodename, host_format

__all__ = ["node_name"]


def node_name(given: str | None) -> str:
    """Return the name of a worker: ``%h`` becomes the host, and a host is added if there is none.

    Parameters
    ----------
    given : str or None
        As after ``-n``; None for ``celery@HOST``.
    """
    return host_format(default_nodename(given))
