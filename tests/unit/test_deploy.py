"""The deployment files, by the linters of their formats; no engine runs here."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from bld.models.known import known

DEPLOY = Path(__file__).parents[2] / "deploy"
TOOLS = Path(sys.executable).parent
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))


@pytest.mark.parametrize(
    "words",
    [
        ["hadolint", "Dockerfile"],
        ["yamllint", "--strict", "-c", "yamllint.yaml", "compose.yaml", "kuberay.yaml"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"],
    ],
    ids=lambda words: words[0],
)
def test_the_linter_finds_nothing(words: list[str]) -> None:
    done = subprocess.run([TOOLS / words[0], *words[1:]], cwd=DEPLOY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def pods(node: Any) -> list[dict[str, Any]]:
    """Every pod template in a manifest."""
    if isinstance(node, list):
        return [pod for one in node for pod in pods(one)]
    if not isinstance(node, dict):
        return []
    own = [node["template"]] if "template" in node else []
    return own + [pod for one in node.values() for pod in pods(one)]


def test_kubernetes_knows_what_is_asked_of_it() -> None:
    """Claims as they are; of KubeRay's own kinds the pods, which are most of them."""
    found = pods(MANIFESTS)
    assert [one["kind"] for one in MANIFESTS] == ["PersistentVolumeClaim", "RayJob", "RayService"]
    assert len(found) == 4
    kubernetes_validate.validate(MANIFESTS[0], "1.31", strict=True)
    for number, pod in enumerate(found):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, **pod}
        kubernetes_validate.validate(whole, "1.31", strict=True)


def test_the_user_of_the_image_can_write_what_is_mounted() -> None:
    """A new volume is root's unless the image has the folder, and a claim unless the pod says whose it is."""
    image = (DEPLOY / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (\d+)$", image, re.MULTILINE)
    assert f"--uid {user} bld" in image
    (owned,) = re.findall(r"install -d -o bld -g bld (.*) \\$", image, re.MULTILINE)
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service["volumes"]:
            assert volume.partition(":")[2] in owned.split()
    assert {pod["spec"]["securityContext"]["fsGroup"] for pod in pods(MANIFESTS)} == {int(user)}


def test_the_proxy_is_believed_and_nobody_else_can_come() -> None:
    """It comes through Docker's bridge, whose default networks these are."""
    for service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values():
        (allowed,) = re.findall(r":-(.*)}", service["environment"]["FORWARDED_ALLOW_IPS"])
        trusted = ProxyHeadersMiddleware(None, allowed).trusted_hosts  # type: ignore[arg-type]
        assert all(bridge in trusted for bridge in ("172.17.0.1", "172.31.0.1", "192.168.240.1"))
        assert "203.0.113.7" not in trusted
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_a_login_shell_finds_the_commands() -> None:
    """KubeRay before 1.4 starts nodes in one: its PATH is that of /etc/profile, which has /usr/local/bin."""
    image = (DEPLOY / "Dockerfile").read_text()
    (linked,) = re.findall(r"ln -s (.*) /usr/local/bin/$", image, re.MULTILINE)
    assert linked.split() == ["/opt/bld/bin/bld", "/opt/bld/bin/ray"]


def test_the_files_name_what_there_is() -> None:
    service = yaml.safe_load(MANIFESTS[2]["spec"]["serveConfigV2"])
    (application,) = service["applications"]
    module, _, attribute = application["import_path"].partition(":")
    build = f"from {module} import {attribute} as build; assert build({application['args']!r})"
    done = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entrypoint = MANIFESTS[1]["spec"]["entrypoint"].split()
    for model in (application["args"]["model"], entrypoint[entrypoint.index("--model") + 1]):
        assert known(model)
    pins = (DEPLOY.parent / "constraints.txt").read_text()
    for manifest in MANIFESTS[1:]:
        cluster = manifest["spec"].get("rayClusterSpec") or manifest["spec"]["rayClusterConfig"]
        assert f"ray=={cluster['rayVersion']}\n" in pins, "not the version that is tested"
