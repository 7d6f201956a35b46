"""`bld models`: the table is that of the docs, and fetching goes the way of the real hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bld.apps.models import HEADINGS, cells
from bld.errors import ModelUnavailable
from bld.models.known import KNOWN, known
from bld.models.load import FAMILIES, load_model
from bld.models.weights import check_whole
from tests.families import checkpoint
from tests.hub import COMMIT, hub
from tests.original import single_file
from tests.tiny import tiny_folder

ROOT = Path(__file__).parents[2]


def bld(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bld.apps.cli", *words],
        capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=120,
    )  # fmt: skip


# --- the table ---


def test_the_docs_have_the_table_that_the_command_prints() -> None:
    lines = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    first = lines.index("| " + " | ".join(HEADINGS) + " |") + 2
    written = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in lines[first : first + len(KNOWN)]
    ]
    assert written == [cells(model) for model in KNOWN]
    assert not lines[first + len(KNOWN)].startswith("|")
    printed = bld("models")
    assert printed.returncode == 0
    for model in KNOWN:
        (line,) = [line for line in printed.stdout.splitlines() if line.split()[:1] == [model.alias]]
        assert all(cell in line for cell in cells(model))
    assert [facts["id"] for facts in json.loads(bld("models", "--json").stdout)] == [m.id for m in KNOWN]


def test_names_are_distinct_and_none_claims_too_much() -> None:
    names = [name for model in KNOWN for name in {model.alias, model.id}]
    assert len(set(names)) == len(names)
    assert all(known(name) is not None for name in names)
    assert known("owner/name") is None
    # Two bytes a weight.
    assert all(model.memory >= 1.9 * model.parameters for model in KNOWN)
    assert [model.alias for model in KNOWN if model.tried == "bundled"] == ["mini"]
    assert not [model.alias for model in KNOWN if model.tried == "real weights"], "say so in docs/models.md"


def test_the_docs_have_every_pipeline_that_loads() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert all(f"`{pipeline}`" in text for pipeline in FAMILIES)


# --- fetching ---


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """owner/tiny, with more in it than bld reads, owner/pickled, and owner/gated."""
    root = tmp_path_factory.mktemp("hub")
    tiny = tiny_folder(root / "owner" / "tiny")
    (root / "owner" / "gated").mkdir()
    pickled = shutil.copytree(tiny, root / "owner" / "pickled") / "unet"
    (weights,) = pickled.glob("*.safetensors")
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    (tiny / "safety_checker").mkdir()
    for extra in ("safety_checker/model.safetensors", "unet/model.bin", "v1-5-pruned.safetensors"):
        (tiny / extra).write_bytes(bytes(100))
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """The flags of a photograph and its mask."""
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(tmp_path / "photo.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return ["--image", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png")]


def test_a_fetched_model_edits_with_no_network(
    repositories: Path, tmp_path: Path, pictures: list[str]
) -> None:
    home = {"HF_HOME": str(tmp_path / "home")}
    with hub(repositories) as (endpoint, asked):
        online = {**home, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
        fetched = bld("models", "fetch", "owner/tiny", **online)
        assert fetched.returncode == 0, fetched.stderr
        assert "owner/tiny is complete in" in fetched.stdout
        assert not [path for path in asked if "safety_checker" in path or ".bin" in path or "pruned" in path]
        asked.clear()
        assert bld("models", "fetch", "owner/tiny", **online).returncode == 0
        assert not [path for path in asked if path.endswith(".safetensors")], "downloaded twice"
    edited = bld(
        "edit", *pictures, "--prompt", "a cat", "--model", "owner/tiny", "--steps", "2", "--candidates", "1",
        "--device", "cpu", "--output", str(tmp_path / "out"), **home, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert edited.returncode == 0, edited.stderr
    assert (tmp_path / "out" / "result.png").is_file()


def test_a_single_file_edits_once_the_configuration_is_fetched(
    repositories: Path, tmp_path: Path, pictures: list[str]
) -> None:
    """Without --config: that it is a Stable Diffusion 1 is told from the file."""
    folder = checkpoint("sd1", repositories / "stable-diffusion-v1-5" / "stable-diffusion-v1-5")
    file = single_file(folder, tmp_path / "model.safetensors")
    home = {"HF_HOME": str(tmp_path / "home")}
    edit = ["edit", *pictures, "--prompt", "a cat", "--model", str(file), "--steps", "2", "--candidates", "1"]
    edit += ["--device", "cpu", "--context-pixels", "0", "--output", str(tmp_path / "out")]
    failed = bld(*edit, **home, HF_HUB_OFFLINE="1")
    assert failed.returncode == 2
    command = failed.stderr.rpartition("run: bld ")[2].split()
    assert command == ["models", "fetch", "stable-diffusion-v1-5/stable-diffusion-v1-5", "--config-only"]
    with hub(repositories) as (endpoint, asked):
        fetched = bld(*command, **home, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
        assert fetched.returncode == 0, fetched.stderr
        assert "the configuration of stable-diffusion-v1-5" in fetched.stdout
        assert not [path for path in asked if path.endswith((".safetensors", ".bin"))]
    edited = bld(*edit, **home, HF_HUB_OFFLINE="1")
    assert edited.returncode == 0, edited.stderr
    assert json.loads((tmp_path / "out" / "edit.json").read_text())["model"]["name"] == str(file)


def test_a_download_goes_on_where_the_connection_broke(repositories: Path, tmp_path: Path) -> None:
    """Within one run, and in steps of the 10 MiB that the client reads at once."""
    folder = shutil.copytree(repositories / "owner" / "tiny", repositories / "owner" / "large")
    weights = "unet/diffusion_pytorch_model.safetensors"
    save_file({"w": torch.rand(6_000_000)}, folder / weights)
    with hub(repositories, breaks=weights) as (endpoint, asked):
        online = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        fetched = bld("models", "fetch", "owner/large", **online)
        assert fetched.returncode == 0, fetched.stderr
    (again,) = [path for path in asked if "bytes=" in path]
    assert again.endswith(f"{weights} bytes={10 << 20}-")
    found = Path(fetched.stdout.rpartition(" in ")[2].strip()) / weights
    assert found.read_bytes() == (folder / weights).read_bytes()


def test_a_download_that_fails_keeps_the_files_that_are_whole(repositories: Path, tmp_path: Path) -> None:
    weights, attempts = "vae/diffusion_pytorch_model.safetensors", 6
    with hub(repositories, breaks=weights, times=attempts) as (endpoint, asked):
        online = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        failed = bld("models", "fetch", "owner/tiny", **online)
        assert failed.returncode == 2
        message = failed.stderr.splitlines()[-1]
        assert "model owner/tiny: the download broke off" in message
        assert "run it again" in message
        asked.clear()
        fetched = bld("models", "fetch", "owner/tiny", **online)
        assert fetched.returncode == 0, fetched.stderr
    assert {path.partition(f"{COMMIT}/")[2] for path in asked if path.endswith(".safetensors")} == {weights}
    found = Path(fetched.stdout.rpartition(" in ")[2].strip()) / weights
    assert found.read_bytes() == (repositories / "owner" / "tiny" / weights).read_bytes()


@pytest.mark.parametrize(
    ("id", "says"),
    [
        ("owner/gated", ("accept their terms at http://127.0.0.1", "HF_TOKEN")),
        ("owner/none", ("no repository at http://127.0.0.1", "check the name")),
    ],
)
def test_a_repository_that_does_not_give_says_what_to_do(
    id: str, says: tuple[str, ...], repositories: Path, tmp_path: Path
) -> None:
    with hub(repositories) as (endpoint, _):
        failed = bld("models", "fetch", id, HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert failed.returncode == 2
    assert len(failed.stderr.strip().splitlines()) == 1
    assert all(words in failed.stderr for words in (f"model {id}", *says))


def test_pickled_weights_are_fetched_only_when_that_is_allowed(
    repositories: Path, pictures: list[str], tmp_path: Path
) -> None:
    with hub(repositories) as (endpoint, asked):
        online = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        failed = bld("models", "fetch", "owner/pickled", **online)
        assert failed.returncode == 2
        assert "its unet has no weights but pickled ones" in failed.stderr
        assert not [path for path in asked if path.endswith(".bin")]
        fetched = bld("models", "fetch", "owner/pickled", "--allow-pickle", **online)
        assert fetched.returncode == 0, fetched.stderr
    folder = Path(fetched.stdout.rpartition(" in ")[2].strip())
    assert [file.name for file in (folder / "unet").glob("*.bin")] == ["diffusion_pytorch_model.bin"]
    edit = ["edit", *pictures, "--prompt", "a cat", "--model", "owner/pickled", "--steps", "1"]
    made = bld(*edit, "--allow-pickle", "--output", str(tmp_path / "out"), HF_HOME=str(tmp_path))
    assert made.returncode == 0, made.stderr


def test_without_a_network_the_message_names_cache_and_command(tmp_path: Path) -> None:
    failed = bld("models", "fetch", "sdxl", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert failed.returncode == 2
    id = "stabilityai/stable-diffusion-xl-base-1.0"
    assert f"not in the cache ({tmp_path}" in failed.stderr
    assert f"bld models fetch {id}" in failed.stderr


def test_the_model_in_the_package_needs_no_fetching() -> None:
    failed = bld("models", "fetch", "mini")
    assert (failed.returncode, "nothing to fetch" in failed.stderr) == (2, True)


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "text"])
def test_weights_that_are_not_whole_are_named(damage: str, tmp_path: Path) -> None:
    whole = next((ROOT / "src/bld/models/mini/vae").glob("*.safetensors"))
    check_whole(whole)
    file = Path(shutil.copy(whole, tmp_path / "weights.safetensors"))
    content = file.read_bytes()
    damaged = {
        "cut": content[:-9],
        "longer": content + b"0",
        "empty": b"",
        "text": b"version https://git-lfs",
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(
        ModelUnavailable, match=r"weights\.safetensors: .*remove it and fetch the model again"
    ):
        check_whole(file)


def test_a_model_too_large_for_the_memory_is_refused_before_it_is_read(
    repositories: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(repositories / "owner" / "tiny", tmp_path / "model")
    large = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = 250_000_000_000
    facts = {"w": {"dtype": "F32", "shape": [weights], "data_offsets": [0, 4 * weights]}}
    content = json.dumps(facts).encode()
    large.write_bytes(len(content).to_bytes(8, "little") + content)
    os.truncate(large, 8 + len(content) + 4 * weights)  # a hole: a terabyte that takes no room
    with pytest.raises(
        ModelUnavailable, match=r"take 1000\.\d GB, and [\d.]+ GB are free on cpu, --dtype bfl"
    ):
        load_model(str(folder), device="cpu")
    with pytest.raises(ModelUnavailable, match=r"take 500\.\d GB, and [\d.]+ GB are free on cpu; close"):
        load_model(str(folder), device="cpu", dtype="bfloat16")
