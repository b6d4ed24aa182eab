"""Precision and recall of `neuscale data check` for copies and wrong labels planted in CIFAR-10.

    python benchmarks/data_check.py cifar10-jpeg.tar.gz

Of 20,000 images, 5 % get a wrong label, 200 are copied exactly and 200 with a change (compressed, scaled
or brightened). Two runs check the labels, each trained on one half and evaluated on the other.
"""

import argparse
import csv
import io
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from table import RESULTS, cpu_name

SEED = 7


def changed(content: bytes, how: int) -> bytes:
    """Return the image compressed again (`how` 0), scaled (1) or brightened (2)."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    if how == 1:
        image = image.resize((40, 40), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)
    elif how == 2:
        image = ImageEnhance.Brightness(image).enhance(1.03)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=75 if how == 0 else 95)
    return stream.getvalue()


def plant(
    archive: Path, folder: Path, images: int, share: float, copies: int
) -> tuple[dict[str, str], set[frozenset[str]]]:
    """Write the subset to `folder`; return the true classes of mislabelled files, and the pairs of copies."""
    from neuscale.data.sources.open_images import open_tree

    random = np.random.default_rng(SEED)
    tree = open_tree(archive)
    names = sorted(
        name for name in tree.files if "/train/" in f"/{name}" and name.endswith((".jpg", ".jpeg", ".png"))
    )
    chosen = [names[i] for i in sorted(random.choice(len(names), images, replace=False))]
    classes = sorted({name.split("/")[-2] for name in chosen})
    content = dict(tree.read(chosen))
    wrong: dict[str, str] = {}
    for name in random.permutation(chosen)[: int(share * images)]:
        true = name.split("/")[-2]
        wrong[name] = str(random.choice([other for other in classes if other != true]))
    places = {}
    for name in chosen:
        class_name, file = name.split("/")[-2:]
        places[name] = f"{wrong.get(name, class_name)}/{class_name}-{file}"
        path = folder / places[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[name])
    pairs = set()
    for number, name in enumerate(random.permutation(chosen)[: 2 * copies]):
        exact = number < copies
        place = places[name].replace("/", f"/copy{number}-")
        (folder / place).write_bytes(content[name] if exact else changed(content[name], number % 3))
        pairs.add(frozenset((places[name], place)))
    return {places[name]: name.split("/")[-2] for name in wrong}, pairs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--wrong", type=float, default=0.05)
    parser.add_argument("--copies", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="neuscale-") as name:
        folder = Path(name)
        os.environ |= {"NEUSCALE_DATA": str(folder / "data"), "NEUSCALE_RUNS": str(folder / "runs")}
        rows = measure(asked, folder)
    path = asked.results / "data_check.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(path.read_text())


def measure(asked: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """Precision and recall of each kind of finding."""
    import neuscale
    from neuscale.analysis.data_check import check_data
    from neuscale.progress import Silent
    from neuscale.runs.folder import find_run

    wrong, pairs = plant(asked.archive, folder / "cut", asked.images, asked.wrong, asked.copies)
    suspected: set[str] = set()
    right = 0
    accuracies = []
    for fold in range(2):
        data = neuscale.load_data(f"cut{fold}", source=folder / "cut", folds=2, fold=fold)
        words = [
            f"data.name=cut{fold}",
            f"train.epochs={asked.epochs}",
            f"run.name=r{fold}",
            "augment.crop_padding=4",
        ]
        run = neuscale.train("experiment=quickstart", *words, "run.seed=1")
        accuracies.append(run.outcome.best_top1)
        check = check_data(data, find_run(f"r{fold}"), Silent())
        for suspect in check.mislabelled:
            if suspect.image.split == "val":
                suspected.add(suspect.image.name)
                right += wrong.get(suspect.image.name) == suspect.suggested
    print(f"top-1 of the two runs on the other half, wrong labels included: {accuracies}")
    found = {frozenset(image.name for image in group) for group in check.equal + check.similar}
    planted = sum(any(pair <= group for group in found) for pair in pairs)

    def row(what: str, hits: int, claimed: int, there: int) -> dict[str, object]:
        return {
            "planted": what,
            "count": there,
            "claimed": claimed,
            "precision": f"{hits / max(1, claimed):.4f}",
            "recall": f"{hits / there:.4f}",
            "images": asked.images,
            "cpu": cpu_name(),
        }

    claims = sum(any(pair <= group for pair in pairs) for group in found)
    return [
        row("wrong labels", len(suspected & wrong.keys()), len(suspected), len(wrong)),
        {**row("wrong labels, and the right class", right, len(suspected), len(wrong))},
        {**row("copies", planted, len(found), len(pairs)), "precision": f"{claims / max(1, len(found)):.4f}"},
    ]


if __name__ == "__main__":
    main()
