"""Sizes of the images and their parts, from a built Docker image, and from a .sif if there is one.

    .venv/bin/python benchmarks/images.py [IMAGE [SIF]]            # after make image sif

Sizes are those of uncompressed files; only the .sif is compressed. Writes `benchmarks/results/images.csv`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from table import write_table

# Parts and their paths; files that an earlier part contains are not counted again.
PARTS = {
    "CUDA's libraries and Triton": ["{packages}/nvidia", "{packages}/triton"],
    "torch and torchvision": ["{packages}/torch", "{packages}/torchvision", "{packages}/torchvision.libs"],
    "the native ops": ["{packages}/neuscale_ops"],
    "other packages and the program": ["/opt/neuscale"],
    "Fashion-MNIST, prepared": ["/data"],
    "Python, a C++ compiler and the base image": ["/usr", "/etc", "/var", "/opt"],
}

# Program that prints the bytes of each part; it runs in the image.
MEASURE = """
import json, os, sys, sysconfig
seen, found = set(), {}
for part, paths in json.loads(sys.argv[1]).items():
    found[part] = 0
    for top in paths:
        for folder, _, names in os.walk(top.replace("{packages}", sysconfig.get_path("purelib"))):
            for name in names:
                status = os.lstat(os.path.join(folder, name))
                key = status.st_dev, status.st_ino
                if key not in seen:
                    seen.add(key)
                    found[part] += status.st_size
print(json.dumps(found))
"""


def main(image: str, sif: Path) -> None:
    """Measure the sizes and write the table."""
    details: dict[str, Any] = json.loads(_said("docker", "image", "inspect", image))[0]
    python = ("/opt/neuscale/bin/python", "-I", "-c", MEASURE, json.dumps(PARTS))
    inside: dict[str, int] = json.loads(_inside(image, *python))
    sizes = {"Docker image": details["Size"], **inside}
    if sif.is_file():
        sizes["Apptainer image (.sif)"] = sif.stat().st_size
    revision = details["Config"]["Labels"]["org.opencontainers.image.revision"]
    base = _said(
        "docker", "run", "--rm", "--entrypoint", "sh", image, "-c", '. /etc/os-release && echo "$PRETTY_NAME"'
    )
    shared = {"revision": revision, "base": base.strip(), "architecture": details["Architecture"]}
    write_table(
        "images", [{**shared, "part": part, "megabytes": f"{size / 1e6:.1f}"} for part, size in sizes.items()]
    )


def _inside(image: str, program: str, *words: str) -> str:
    options = ("--rm", "--user", "0:0", "--network", "none", "--entrypoint", program)
    return _said("docker", "run", *options, image, *words)


def _said(*words: str) -> str:
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    given = sys.argv[1:]
    main(given[0] if given else "neuscale:0.1.0", Path(given[1] if len(given) > 1 else "neuscale.sif"))
