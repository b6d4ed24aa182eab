"""What differs between two runs in how they were made, each thing named once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Of the configuration: how a run is called, shown and stopped changes no number of it, and
# where it computes is told by the machine.
FREE = frozenset({"run.name", "run.time_limit", "run.device", "data.source", "data.stage"})
FREE_SECTIONS = ("tracking.", "checkpoint.")


@dataclass(frozen=True)
class Difference:
    """`area`: config, code, packages, …; `what` of it; and the values in both, None where it is not there."""

    area: str
    what: str
    before: Any
    now: Any

    def __str__(self) -> str:
        name = self.area if self.area == self.what else f"{self.area}: {self.what}"
        return f"{name} {_words(self.before)} → {_words(self.now)}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """What differs between two manifests of today's version; what one does not know is no difference."""
    found = _code_differences(before.get("code"), now.get("code"))
    complete = not ("migrated_from" in before or "migrated_from" in now)
    facts_before, facts_now = _facts(before), _facts(now)
    for area, values in facts_now.items():
        then = facts_before[area]
        if then is None or values is None:
            continue
        for what in {**then, **values}:
            a, b = then.get(what), values.get(what)
            known = a is not None and b is not None
            if a != b and (known or (complete and area in ("config", "packages"))):
                found.append(Difference(area, what, a, b))
    return found


def _code_differences(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[Difference]:
    """Equal code is code with equal files; where those were not hashed, an equal and unchanged revision."""
    if before is None or now is None:
        return []
    then, since = before.get("source_sha256"), now.get("source_sha256")
    if then is not None and since is not None:
        return [Difference("code", "code", code_words(before), code_words(now))] if then != since else []
    if all(before.get(name) == now.get(name) for name in ("revision", "changed")):
        return []
    return [Difference("code", "code", code_words(before), code_words(now))]


def code_words(code: Mapping[str, Any] | None) -> str:
    """The revision, whether it was changed, and enough of the files' hash to tell changes apart."""
    if code is None:
        return "unknown"
    source = f" ({code['source_sha256'][:8]})" if code.get("source_sha256") else ""
    changes = " with changes" if code.get("changed") else ""
    return f"{short(code.get('revision')) or 'no revision'}{changes}{source}"


def _facts(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """What of a manifest decides a run's numbers, by area; None for what it does not know."""
    machine, data = manifest["machine"], manifest.get("data") or {}
    ops = manifest.get("ops") or {}
    build = ops.get("build") or {}
    return {
        "config": changing_fields(manifest.get("config")),
        "data": {"data": short(data.get("fingerprint"))},
        "packages": _packages(manifest),
        "python": {"python": manifest.get("python")},
        "ops": {"kind": ops.get("kind"), **{name: short(build.get(name)) for name in _LIBRARIES}},
        "precision": {"precision": manifest.get("precision")},
        "determinism": manifest.get("determinism"),
        "threads": {"threads": machine.get("threads")},
        "processes": {"processes": machine.get("processes")},
        "machine": {
            **{name: machine.get(name) for name in ("host", "system", "cpu", "kind", "driver", "cuda")},
            "gpus": ", ".join(gpu["name"] for gpu in machine["gpus"]) if machine.get("gpus") else None,
        },
    }


_LIBRARIES = ("cpu_sha256", "cuda_sha256")


def changing_fields(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The fields of a configuration that a run's numbers depend on, as `section.field`."""
    if config is None:
        return None
    fields = {
        f"{section}.{name}": value
        for section, values in config.items()
        if isinstance(values, Mapping)
        for name, value in values.items()
    }
    return {n: v for n, v in fields.items() if n not in FREE and not n.startswith(FREE_SECTIONS)}


def _packages(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    packages = manifest.get("packages")
    # The program's own versions are told by its code and by the hash of its ops.
    return {n: v for n, v in packages.items() if n not in ("neuscale", "neuscale-ops")} if packages else None


def short(digest: str | None) -> str | None:
    """Enough of a hash to tell it from others."""
    return digest[:12] if digest else None


def _words(value: Any) -> str:
    return "none" if value is None else str(value)
