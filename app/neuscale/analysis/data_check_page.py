"""Page of a data check: a single HTML file with the images that were found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from neuscale.analysis.data_check import CheckedImage, DataCheck, across_splits, in_several_classes
from neuscale.analysis.report import without_controls
from neuscale.analysis.report_figures import picture_source
from neuscale.data.datasets import Dataset
from neuscale.errors import disk_error
from neuscale.fs import make_folder, write_atomically

TEMPLATE = Path(__file__).with_name("data_check.html")

_MOST_GROUPS, _MOST_IMAGES = 60, 12


def findings(check: DataCheck) -> list[tuple[str, str]]:
    """Description of each kind of finding, with its number."""
    groups = check.equal + check.similar
    found = [
        ("groups of equal images", len(check.equal)),
        ("groups of nearly equal images", len(check.similar)),
        ("of these in several splits", sum(across_splits(group) for group in groups)),
        ("of these in several classes", sum(in_several_classes(group) for group in groups)),
        ("dark images", len(check.dark)),
        ("bright images", len(check.bright)),
        ("images of one colour", len(check.flat)),
    ]
    rows = [(what, f"{count:,}") for what, count in found]
    for what, images in (("tiny images, enlarged", check.tiny), ("huge images", check.huge)):
        rows.append((what, f"{len(images):,}" if images is not None else "not known"))
    rows.append(("largest class for each of the smallest", f"{check.imbalance:.3g}"))
    if check.run is not None:
        rows.append(("probably mislabelled", f"{len(check.mislabelled):,}"))
    return rows


def write_check_page(data: Dataset, check: DataCheck, path: Path) -> None:
    """Write the page to `path`. Raises UserError if that is not possible."""

    def shown(image: CheckedImage, note: str = "") -> dict[str, Any]:
        source = picture_source(data.image(image.split, image.sample))
        fields = {"label": image.label, "split": image.split, "name": image.name}
        return {"source": source, "note": note, **fields}

    def section(title: str, words: str, groups: Sequence[Sequence[CheckedImage]]) -> tuple[Any, ...]:
        # The most important ones come first: copies across splits, then copies in several classes.
        ranked = sorted(groups, key=lambda group: (not across_splits(group), not in_several_classes(group)))
        chosen = [[shown(image) for image in group[:_MOST_IMAGES]] for group in ranked[:_MOST_GROUPS]]
        return title, words, chosen, len(groups)

    def alone(title: str, words: str, images: Sequence[CheckedImage]) -> tuple[Any, ...]:
        pictures = [[shown(image) for image in images[:_MOST_GROUPS]]] if images else []
        return title, f"{words} There are {len(images):,}.", pictures, 0

    suspects = check.mislabelled[:_MOST_GROUPS]
    labels = [shown(suspect.image, f"rather {suspect.suggested}") for suspect in suspects]
    sections = [
        section(
            "Equal images", "The same pixels. Across splits, what is evaluated was trained on.", check.equal
        ),
        section("Nearly equal images", "Copies that were scaled, compressed or brightened.", check.similar),
        (
            "Probably mislabelled",
            f"Likelier to the model than their labels, the surest first: {len(check.mislabelled):,}.",
            [labels] if labels else [],
            0,
        ),
        alone("Dark images", "Nearly black.", check.dark),
        alone("Bright images", "Nearly white.", check.bright),
        alone("Images of one colour", "Without any outline.", check.flat),
        alone("Tiny images", "Their files are less than half as wide or high as here.", check.tiny or []),
        alone("Huge images", "Their files have many times the pixels of the others.", check.huge or []),
    ]
    environment = jinja2.Environment(autoescape=True, finalize=without_controls)
    page = environment.from_string(TEMPLATE.read_text()).render(
        check=check, numbers=findings(check), sections=sections, splits=data.meta.splits
    )
    try:
        make_folder(path.absolute().parent)
        write_atomically(path, page)
    except OSError as error:
        raise disk_error(error, path) from error
