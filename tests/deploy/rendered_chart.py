"""What the chart makes of values, rendered by the real helm."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_binary import helm_binary

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "tiny-sd"
VALUES_FILES = tuple(sorted(path.name for path in CHART.glob("values*.yaml")))
ONE_GPU, GPUS, CPU, KSERVE = (f"values-{name}.yaml" for name in ("gpu", "gpus", "cpu", "kserve"))
EVERYTHING = (
    "publicUrl=https://pictures.example.com",
    "ingress.enabled=true",
    "httpRoute.enabled=true",
    "httpRoute.parentRefs[0].name=public",
    "monitoring.podMonitors=true",
    "monitoring.rules=true",
    "monitoring.dashboard=true",
    "tracing.endpoint=http://otel-collector.observability:4318",
)
"""All options that need nothing else."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod as some object makes it."""

    owner: Object
    labels: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        """Those that run, and those that run before."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def main(self) -> Object:
        (container,) = self.spec["containers"]
        return container

    @property
    def environment(self) -> dict[str, str]:
        """The main container's variables that have their values here."""
        return {variable["name"]: variable["value"] for variable in self.main["env"] if "value" in variable}

    def is_selected_by(self, labels: dict[str, str]) -> bool:
        return labels.items() <= self.labels.items()


@dataclass(frozen=True)
class Rendered:
    """All objects of a release called ``tiny-sd`` in the namespace ``pictures``."""

    objects: tuple[Object, ...]

    def of(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    def the(self, kind: str, name: str | None = None) -> Object:
        """The only one, or the only one of this name."""
        (found,) = (one for one in self.of(kind) if name in (None, one["metadata"]["name"]))
        return found

    def pods(self) -> list[Pod]:
        return list(self._pods())

    def pod(self, component: str) -> Pod:
        """The pod of ``triton``, ``gateway``, ``checkpoint`` or ``test``."""
        (found,) = (pod for pod in self.pods() if pod.labels["app.kubernetes.io/component"] == component)
        return found

    def _pods(self) -> Iterator[Pod]:
        for owner in self.objects:
            if owner["kind"] in ("Deployment", "Job"):
                template = owner["spec"]["template"]
                yield Pod(owner, template["metadata"]["labels"], template["spec"])
            elif owner["kind"] == "InferenceService":
                predictor = dict(owner["spec"]["predictor"])
                labels = predictor.pop("labels")
                for name in ("minReplicas", "maxReplicas", "autoScaling", "deploymentStrategy"):
                    predictor.pop(name, None)
                yield Pod(owner, labels, predictor)


@cache
def render(values_file: str = "values.yaml", *settings: str, release: str = "tiny-sd") -> Rendered:
    """``settings`` are like ``triton.replicas=2``."""
    text = manifest(values_file, *settings, release=release)
    return Rendered(tuple(found for found in yaml.load_all(text, yaml.CSafeLoader) if found))


@cache
def manifest(values_file: str, *settings: str, release: str = "tiny-sd") -> str:
    """The text of what is rendered."""
    return _helm("template", release, CHART, "--namespace", "pictures", *_options(values_file, settings))


def refusal(values_file: str, *settings: str) -> str:
    """What helm says of values that the chart does not take."""
    try:
        _helm("template", "tiny-sd", CHART, *_options(values_file, settings))
    except subprocess.CalledProcessError as error:
        return str(error.stderr)
    raise AssertionError(f"{settings} was taken")


def lint(values_file: str) -> str:
    return _helm("lint", "--strict", CHART, *_options(values_file, ()))


def notes(values_file: str, *settings: str) -> str:
    """What an installation prints, without a cluster."""
    options = ("--dry-run=client", "--namespace", "pictures", *_options(values_file, settings))
    return _helm("install", "tiny-sd", CHART, *options).partition("NOTES:")[2]


def _options(values_file: str, settings: tuple[str, ...]) -> list[str]:
    return ["--values", str(CHART / values_file), *(word for setting in settings for word in ("--set", setting))]


def _helm(*arguments: object) -> str:
    command = [str(helm_binary()), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
