"""The habits of the repository that no linter knows."""

import importlib.metadata
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import bld

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "bld"
MODELS = SRC / "models"
BASELINES = SRC / "baselines"
DISTRIBUTION = "blended-latent-diffusion"
HEAVY = ["torch", "diffusers", "transformers", "gradio", "fastapi", "ray"]
MB = 10**6


def files_of_the_repository() -> list[Path]:
    """What is tracked, or would be after `git add --all`; without git, what is not hidden."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        parts = {path: path.relative_to(ROOT).parts for path in ROOT.rglob("*")}
        paths = {p for p in parts if not any(part[0] in "._" for part in parts[p][:-1])}
    else:
        paths = {ROOT / name for name in listing.stdout.split("\0") if name}
    return sorted(path for path in paths if path.is_file())


def texts_of_the_repository() -> dict[Path, str]:
    """The files without a null byte near the start, decoded."""
    contents = {path: path.read_bytes() for path in files_of_the_repository()}
    return {
        path: data.decode("utf-8", errors="replace")
        for path, data in contents.items()
        if b"\0" not in data[:8192]
    }


def heavy_imports_after(statements: str) -> str:
    """Run `statements` in a fresh interpreter; the heavy packages they imported, in one line."""
    report = f"print('heavy:', *(name for name in {HEAVY} if name in sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{statements}\n{report}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


# ---------------------------------------------------------------- light


def test_import_is_light() -> None:
    assert heavy_imports_after("import bld") == "heavy:"


@pytest.mark.parametrize("command", [[], ["edit"], ["info"], ["train"], ["batch"], ["bench"]], ids=" ".join)
def test_help_is_light(command: list[str]) -> None:
    call = f"""
sys.argv = ["bld", *{command}, "--help"]
from bld.apps.cli import main
try:
    code = main()
except SystemExit as exit:
    code = exit.code
assert not code, code
"""
    assert heavy_imports_after(call) == "heavy:"


# ---------------------------------------------------------------- public names


def test_all_is_sorted_and_without_repeats() -> None:
    assert list(bld.__all__) == sorted(set(bld.__all__))


def test_all_names_can_be_imported() -> None:
    for name in bld.__all__:
        assert getattr(bld, name) is not None, name


def test_all_is_exactly_the_public_names() -> None:
    found = {
        name
        for name, value in vars(bld).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", "bld").startswith("bld")  # else brought by an import
        and name not in ("TYPE_CHECKING", "annotations")
    }
    assert found <= set(bld.__all__), "public, but not in __all__"
    assert set(bld.__all__) <= set(dir(bld)), "in __all__, but not in dir(bld)"


def test_version_has_one_source() -> None:
    assert bld.__version__ == importlib.metadata.version(DISTRIBUTION)


# ---------------------------------------------------------------- names and imports


def test_module_names_say_what_is_inside() -> None:
    hollow = re.compile(r"_?(utils?|helpers?|common|misc)")
    assert [path for path in SRC.rglob("*") if hollow.fullmatch(path.stem)] == []


def test_no_torchvision() -> None:
    imported = re.compile(r"^\s*(?:import|from)\s+torchvision\b", re.MULTILINE)
    assert [path for path in SRC.rglob("*.py") if imported.search(path.read_text())] == []


# ---------------------------------------------------------------- dependencies


def normal_name(requirement: str) -> str:
    """The distribution that a requirement names, in the index's spelling."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal_name(name): version for name, version in pins}


def test_constraints_pin_all_that_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        asked += extra
    assert {normal_name(requirement) for requirement in asked} <= set(constraints())


def test_constraints_suit_every_build_of_torch() -> None:
    pins = constraints()
    assert "+" not in "".join(pins.values()), "a local version admits one build only"
    unwanted = re.compile(r"nvidia-.*|triton|torchvision|torchaudio")
    assert [name for name in pins if unwanted.fullmatch(name)] == []


# ---------------------------------------------------------------- what lies in the repository


def test_no_file_is_over_60_mb() -> None:
    files = files_of_the_repository()
    assert [path for path in files if path.stat().st_size > 60 * MB] == []


def test_bundled_weights_are_under_80_mb_together() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 80 * MB


def test_the_baselines_weights_are_under_40_mb_together() -> None:
    assert sum(path.stat().st_size for path in BASELINES.rglob("*") if path.is_file()) < 40 * MB


def test_bundled_weights_are_no_pickles() -> None:
    pickles = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
    assert [path for path in SRC.rglob("*") if path.suffix in pickles] == []


def test_models_are_not_ignored() -> None:
    files = (*MODELS.rglob("*"), *BASELINES.rglob("*"))
    there = {p for p in files if p.is_file() and "__pycache__" not in p.parts}
    assert there - set(files_of_the_repository()) == set()


def test_no_text_names_a_package_registry() -> None:
    address = re.compile(r"pypi[.]org|python[h]osted|npmjs[.]|pytorch[.]org/whl|index[-]url")
    naming = {
        str(path.relative_to(ROOT)): match[0]
        for path, text in texts_of_the_repository().items()
        if (match := address.search(text))
    }
    assert naming == {}


# ---------------------------------------------------------------- the tests themselves


def test_the_network_is_out_of_reach(network_attempts: list[str]) -> None:
    with socket.socket() as outside, pytest.raises(OSError, match="no network"):
        outside.connect(("192.0.2.1", 80))
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("example.org", 80))
    assert network_attempts == ["192.0.2.1", "example.org"]
    network_attempts.clear()


def test_loopback_is_in_reach(network_attempts: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    assert network_attempts == []
