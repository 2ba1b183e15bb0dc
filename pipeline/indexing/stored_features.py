"""Reading feature containers for jobs."""

from __future__ import annotations

from pipeline.containers import Container, check_container
from pipeline.errors import CorruptFileError
from pipeline.metadata import containers
from pipeline.metadata.engine import session_scope
from pipeline.metadata.records import ContainerRecord
from pipeline.resources import Resources


def open_container(resources: Resources, record: ContainerRecord) -> Container:
    """Return a container; if a sound file has another SHA-256 than recorded, record it.

    A container that was lost and extracted again may differ in its last bits. Its own checksums and
    the images' SHA-256 still vouch for its content.

    Raises
    ------
    CorruptFileError
        The file is damaged.
    """
    try:
        return resources.container(record.key, record.checksum)
    except CorruptFileError:
        checksum = resources.storage.sound_checksum(record.key, check_container)
        if checksum is None:
            raise
        with session_scope(resources.engine) as session:
            containers.correct_checksum(session, record.id, checksum)
        return resources.container(record.key, checksum)
