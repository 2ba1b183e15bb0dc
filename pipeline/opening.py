"""Opening a collection: its extractor is chosen when it is made, and kept until a rebuild."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import ExtractorConfig, IndexConfig, Settings
from pipeline.containers import check_container
from pipeline.errors import ConfigError, UnknownNameError, VantageError
from pipeline.extraction.registry import get_extractor
from pipeline.extraction.spec import parse_extractor
from pipeline.job_params import RebuildParams
from pipeline.metadata import collections, images
from pipeline.metadata.engine import session_scope
from pipeline.metadata.files import known_files
from pipeline.metadata.records import CollectionRecord
from pipeline.resources import Resources


@dataclass(frozen=True)
class ChosenExtractor:
    """The extractor that a caller asked for.

    Attributes
    ----------
    config : ExtractorConfig
    model : Path or None
        Its local model file; None if it has none, or if the store has it already.
    """

    config: ExtractorConfig
    model: Path | None = None


def choose_extractor(settings: Settings, wanted: str | ExtractorConfig) -> ChosenExtractor:
    """Return the extractor given by ``sift``, ``cnn:FILE`` or a configuration.

    Raises
    ------
    UnknownNameError, ConfigError
        See `parse_extractor`.
    """
    if isinstance(wanted, ExtractorConfig):
        return ChosenExtractor(wanted)
    return ChosenExtractor(*parse_extractor(wanted, settings.extractor))


def find_collection(
    resources: Resources, name: str, chosen: ChosenExtractor | None
) -> CollectionRecord | None:
    """Return a collection if it exists and was made with this extractor.

    Parameters
    ----------
    resources : Resources
    name : str
    chosen : ChosenExtractor, optional
        Default: the collection's own. Its model is put back into the store if it is missing there.

    Raises
    ------
    ConfigError
        The collection was made with another extractor: mixing is refused.
    """
    with session_scope(resources.engine, write=False) as session:
        try:
            record = collections.get_collection(session, name)
        except UnknownNameError:
            return None
    if chosen is not None:
        _require_same(record, chosen.config)
        _store_model(resources, chosen)
    return record


def open_collection(
    resources: Resources,
    name: str,
    chosen: ChosenExtractor | None = None,
    index: IndexConfig | None = None,
) -> CollectionRecord:
    """Return a collection; make it if it does not exist.

    Parameters
    ----------
    resources : Resources
    name : str
    chosen : ChosenExtractor, optional
        Default: that of the collection; of a new one, that of the settings.
    index : IndexConfig, optional
        For a new collection; default from the settings. If it has the default row length, the
        extractor's (`Extractor.row_bytes`) is used instead.

    Raises
    ------
    InputError
        The name is not valid for a collection.
    ConfigError
        The collection was made with another extractor, or the extractor cannot be made.
    """
    record = find_collection(resources, name, chosen)
    if record is not None:
        return record
    settings = resources.settings
    if chosen is None:
        wanted = settings.extractor_spec if settings.extractor_text else settings.extractor
        chosen = choose_extractor(settings, wanted)
    _try_model(chosen)
    _store_model(resources, chosen)
    index = index or settings.index
    if index.dimensions == IndexConfig().dimensions:
        index = replace(index, dimensions=resources.extractor(chosen.config).row_bytes)
    with session_scope(resources.engine) as session:
        record = collections.get_or_create_collection(session, name, chosen.config, index)
    # Another process may have made it meanwhile, with another extractor.
    _require_same(record, chosen.config)
    return record


def rebuild_params(
    resources: Resources, record: CollectionRecord, chosen: ChosenExtractor | None
) -> RebuildParams:
    """Return the parameters of a rebuild that gives a collection this extractor.

    Parameters
    ----------
    resources : Resources
    record : CollectionRecord
    chosen : ChosenExtractor, optional
        Default: the collection's own. The same one with other settings counts as another. With the
        same one, images are extracted again if a container is lost or damaged.

    Raises
    ------
    ConfigError, UnknownNameError
        The extractor cannot be made.
    """
    if chosen is None:
        return RebuildParams()
    _try_model(chosen)
    _store_model(resources, chosen)
    if chosen.config == record.extractor and _has_all_containers(resources, record):
        return RebuildParams()
    index = record.index
    if _rows_are_as_the_extractor_says(resources, record):
        index = replace(index, dimensions=resources.extractor(chosen.config).row_bytes)
    with session_scope(resources.engine, write=False) as session:
        roots = images.image_roots(session, record.id)
    return RebuildParams(extractor=chosen.config, index=index, roots=tuple(roots))


def _has_all_containers(resources: Resources, record: CollectionRecord) -> bool:
    """Say whether all features of a collection can be read; reads them."""
    with session_scope(resources.engine, write=False) as session:
        files = known_files(session, record.name, current=True)
    keys = [file.key for file in files if file.kind == "container"]
    return all(resources.storage.sound_checksum(key, check_container) for key in keys)


def _rows_are_as_the_extractor_says(resources: Resources, record: CollectionRecord) -> bool:
    """Say whether rows have the extractor's default length; yes if it is not installed."""
    try:
        return record.index.dimensions == resources.extractor(record.extractor).row_bytes
    except VantageError:
        return True


def _try_model(chosen: ChosenExtractor) -> None:
    """Make the extractor from a local model file before anything is stored.

    An error then names the given file, and leaves nothing behind. First in a process of its own: a
    model may take all time and memory.
    """
    model = chosen.model
    if model is not None:
        from pipeline.extraction.trial import try_model

        try_model(chosen.config, model)
        get_extractor(chosen.config, lambda _sha256: model)


def _store_model(resources: Resources, chosen: ChosenExtractor) -> None:
    """Put the model into the store, where every host finds it."""
    if chosen.model is not None:
        resources.storage.put_model(chosen.model, chosen.config.model)


def _require_same(record: CollectionRecord, wanted: ExtractorConfig) -> None:
    """Refuse an extractor other than the collection's."""
    if record.extractor.same_extractor(wanted):
        return
    mine, yours = record.extractor.describe(), wanted.describe()
    if mine == yours:
        mine += f" and other options ({', '.join(_differences(record.extractor, wanted))})"
    raise ConfigError(
        "extractor",
        yours,
        f"collection {record.name!r} was made with {mine} and keeps it, as features of two "
        "extractors cannot be compared; leave the extractor out, index into a collection of "
        f"another name, or change it for all: `vantage rebuild {record.name} --extractor ...`",
    )


def _differences(one: ExtractorConfig, other: ExtractorConfig) -> list[str]:
    """Return the options that differ between two configurations."""
    names = sorted({*one.options, *other.options})
    differ = [name for name in names if one.options.get(name) != other.options.get(name)]
    return differ or ["revision"]
