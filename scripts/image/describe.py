"""Write a description of the image and its contents: image.json and sbom.spdx.json (SPDX 2.3).

python describe.py FOLDER writes both into FOLDER. It is run by the image's own Python, with REVISION,
LOCK_SHA256 and SOURCE_DATE_EPOCH in the environment. The same packages give the same bytes, except for
the revision and the time, which are those of the source and not of the build.
python describe.py --labels FOLDER/image.json prints the image's labels, one per line.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions, version
from pathlib import Path
from typing import Any
from urllib.parse import quote


def main(folder: Path) -> None:
    """Write both files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    image = describe_image()
    for name, content in {"image.json": image, "sbom.spdx.json": bill_of_materials(image)}.items():
        (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def labels(record: Path) -> str:
    """Labels of the Docker image from the record image.json, in lines of name and value."""
    image = json.loads(record.read_text())
    names = {
        "org.opencontainers.image.version": image["version"],
        "org.opencontainers.image.revision": image["revision"] or "unknown",
        "neuscale.lock.sha256": image["lock_sha256"],
    }
    return "".join(f"{name} {value}\n" for name, value in names.items())


def describe_image() -> dict[str, Any]:
    """Versions, revision and lock file's hash of the image, and the time of its source."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or 0)
    return {
        "version": version("neuscale"),
        "revision": os.environ.get("REVISION") or None,
        "lock_sha256": os.environ["LOCK_SHA256"],
        "python": platform.python_version(),
        "created": datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def bill_of_materials(image: dict[str, Any]) -> dict[str, Any]:
    """SPDX document with all distribution and Python packages, and the compiled ops with their hashes."""
    packages = [*_system_packages(), *_python_packages()]
    files = [_file(path) for path in _compiled_ops()]
    name = f"neuscale-{image['version']}"
    digest = hashlib.sha256(json.dumps([image, packages, files], sort_keys=True).encode()).hexdigest()
    contained = [item["SPDXID"] for item in (*packages, *files)]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"urn:sha256:{digest}",
        "creationInfo": {"created": image["created"], "creators": ["Tool: neuscale-describe"]},
        "packages": packages,
        "files": files,
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relatedSpdxElement": spdx_id,
                "relationshipType": "DESCRIBES",
            }
            for spdx_id in contained
        ],
    }


def _system_packages() -> list[dict[str, Any]]:
    distribution = platform.freedesktop_os_release().get("ID", "linux")
    listed = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package}\t${Version}\t${Architecture}\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = sorted(line.split("\t") for line in listed.splitlines())
    return [
        _package(name, number, f"pkg:deb/{distribution}/{quote(name)}@{quote(number)}?arch={architecture}")
        for name, number, architecture in rows
    ]


def _python_packages() -> list[dict[str, Any]]:
    found: dict[str, Distribution] = {_normal(d.name): d for d in distributions()}
    return [
        _package(name, d.version, f"pkg:pypi/{name}@{d.version}", d.metadata.get("License-Expression"))
        for name, d in sorted(found.items())
    ]


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _package(name: str, number: str, locator: str, license_expression: str | None = None) -> dict[str, Any]:
    reference = {
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": locator,
    }
    return {
        "SPDXID": _identifier(locator),
        "name": name,
        "versionInfo": number,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": license_expression or "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [reference],
    }


def _compiled_ops() -> list[Path]:
    return sorted(Path(sys.prefix).glob("lib/python3*/site-packages/neuscale_ops/*.so"))


def _file(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    checksums = [
        {"algorithm": "SHA1", "checksumValue": hashlib.sha1(content).hexdigest()},  # SPDX 2.3 requires it
        {"algorithm": "SHA256", "checksumValue": hashlib.sha256(content).hexdigest()},
    ]
    return {"SPDXID": _identifier(str(path)), "fileName": str(path), "checksums": checksums}


def _identifier(text: str) -> str:
    words = "".join(c if c.isascii() and c.isalnum() else "-" for c in text)
    return f"SPDXRef-{words.strip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


if __name__ == "__main__":
    if sys.argv[1] == "--labels":
        print(labels(Path(sys.argv[2])), end="")
    else:
        main(Path(sys.argv[1]))
