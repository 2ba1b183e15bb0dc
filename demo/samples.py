"""Photographs and queries of the demonstration: samples, or the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pipeline.errors import InputError
from pipeline.evaluation import read_dataset
from pipeline.evaluation.transforms import STANDARD, get_transform, make_views, view_bytes
from pipeline.walk import walk

# The photographs in scikit-image's wheel; its other files are drawings, test charts and charts of
# colour. `motorcycle_right` is not indexed: it shows the scene of `motorcycle_left` from another
# place, and is the most realistic query.
SAMPLES = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "microaneurysms.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
STEREO_QUERY, STEREO_ANSWER = "motorcycle_right.png", "motorcycle_left.png"

VIEWS_PER_PHOTOGRAPH = 2
MAX_OWN_VIEWS = 40


@dataclass(frozen=True)
class DemoQuery:
    """One picture to search with.

    Attributes
    ----------
    title : str
        For people.
    path : Path
        The picture.
    change : str
        How the photograph was changed; empty if unknown.
    answers : frozenset of str
        Locations of that photograph; empty if unknown.
    """

    title: str
    path: Path
    change: str = ""
    answers: frozenset[str] = frozenset()


def sample_folder() -> Path:
    """Return the folder of scikit-image's sample pictures.

    Raises
    ------
    InputError
        scikit-image is not installed, or some photograph is not in this release of it.
    """
    try:
        import skimage
    except ImportError:
        raise InputError(
            "the sample photographs come with scikit-image, which is not installed; install it "
            "with `pip install --group demo`, or name your own with --photos FOLDER"
        ) from None
    folder = Path(skimage.__file__).parent / "data"
    missing = [name for name in (*SAMPLES, STEREO_QUERY) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"scikit-image {version('scikit-image')} does not bring {', '.join(missing)}; name "
            "your own photographs with --photos FOLDER"
        )
    return folder


def sample_queries(workspace: Path) -> tuple[list[Path], list[DemoQuery]]:
    """Copy the sample photographs, make views of them.

    Parameters
    ----------
    workspace : Path
        Folder to write to.

    Returns
    -------
    folders : list of Path
        What to index.
    queries : list of DemoQuery
        Two views of each photograph, transforms taking turns, and the other half of a stereo pair.
    """
    source = sample_folder()
    photographs = [source / name for name in SAMPLES]
    dataset = read_dataset(make_views(photographs, workspace, per_photograph=VIEWS_PER_PHOTOGRAPH))
    queries = [
        DemoQuery(
            title=f"{Path(*query.relevant).stem}, {get_transform(query.subset).description}",
            path=dataset.file(query.path),
            change=get_transform(query.subset).description,
            answers=frozenset(str(dataset.file(path)) for path in query.relevant),
        )
        for query in dataset.queries
    ]
    change = "from another place"
    queries.append(
        DemoQuery(
            title=f"{Path(STEREO_ANSWER).stem}, {change}",
            path=source / STEREO_QUERY,
            change=change,
            answers=frozenset([str(dataset.file(f"database/{STEREO_ANSWER}"))]),
        )
    )
    return [workspace / "database"], queries


def own_views(photographs: Path, workspace: Path) -> list[DemoQuery]:
    """Make views of some of the user's photographs, evenly chosen over the folder.

    Raises
    ------
    InputError
        The folder holds no image that can be read.
    """
    files = image_files(photographs)
    step = max(1, -(-len(files) // MAX_OWN_VIEWS))
    folder = workspace / "queries"
    folder.mkdir(parents=True, exist_ok=True)
    queries = []
    for number, file in enumerate(files[::step]):
        transform = STANDARD[number % len(STANDARD)]
        try:
            view = view_bytes(file.read_bytes(), transform)
        except (OSError, InputError):
            continue  # indexing will report what is wrong with it
        path = folder / f"{number:03}__{transform.name}.jpg"
        path.write_bytes(view)
        queries.append(
            DemoQuery(
                title=f"{file.name}, {transform.description}",
                path=path,
                change=transform.description,
                answers=frozenset([str(file)]),
            )
        )
    if not queries:
        raise InputError(f"no image in {str(photographs)!r} can be read")
    return queries


def image_files(folder: Path) -> list[Path]:
    """Return the images below a folder, as indexing will find them.

    Raises
    ------
    InputError
        There is none.
    """
    files = [Path(found.path) for found in walk([folder]) if found.error is None]
    if not files:
        raise InputError(f"the folder {str(folder)!r} holds no image; name one that does")
    return files


def own_queries(paths: Sequence[Path]) -> list[DemoQuery]:
    """Return the user's own pictures as queries."""
    return [DemoQuery(title=path.name, path=path) for path in paths]
