"""The manifests of deploy/k8s as a cluster would get them."""

import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
KUBERNETES = ROOT / "deploy" / "k8s"
OVERLAYS = ("small", "production")
Manifest = dict[str, Any]


def find_renderer() -> list[str] | None:
    """The command that renders a kustomization, or None."""
    if kustomize := shutil.which("kustomize"):
        return [kustomize, "build"]
    kubectl = shutil.which("kubectl")
    return [kubectl, "kustomize"] if kubectl else None


def describe_renderer() -> str:
    """For the summary of what the tests ran against."""
    renderer = find_renderer()
    if renderer is None:
        return "manifests not rendered (neither kustomize nor kubectl is installed): each file is validated by itself"
    return f"manifests rendered by {' '.join(Path(word).name for word in renderer)}"


@functools.cache
def render(folder: Path) -> Sequence[Manifest]:
    """All resources of a kustomization."""
    renderer = find_renderer()
    assert renderer is not None
    done = subprocess.run([*renderer, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


@functools.cache
def overlay(name: str) -> Sequence[Manifest]:
    """The resources of an overlay; without a renderer those of its files and of what it is built on, unpatched."""
    if find_renderer() is not None:
        return render(KUBERNETES / "overlays" / name)
    files = [*(KUBERNETES / "base").glob("*.yaml"), *(KUBERNETES / "components").rglob("*.yaml")]
    files += (KUBERNETES / "overlays" / name).glob("*.yaml")
    return [manifest for file in files for manifest in plain(file)]


def plain(file: Path) -> list[Manifest]:
    """The complete resources of one file: no kustomization, no patch, no configuration of ours."""
    if file.parent.name == "patches" or file.name in ("kustomization.yaml", "homeserver.yaml", "shards.yaml"):
        return []
    return [manifest for manifest in yaml.safe_load_all(file.read_text()) if manifest]


def of_kind(manifests: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    """Those of some kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def named(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The one of this kind and name; ConfigMaps may have a hash behind it."""
    (found,) = (
        one
        for one in of_kind(manifests, kind)
        if one["metadata"]["name"] == name or one["metadata"]["name"].rpartition("-")[0] == name
    )
    return found


def pod_of(manifest: Manifest) -> Manifest:
    """The pod template of a workload."""
    spec = manifest["spec"]
    if manifest["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template: Manifest = spec["template"]
    return template
