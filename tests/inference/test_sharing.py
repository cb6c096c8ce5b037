"""Checkpoints as folders for the Hugging Face Hub and for MONAI: the same predictions, nothing that runs code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from tiny_checkpoint import settings_of, tiny_cohort, write_checkpoint
from tiny_studies import write_study

from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cohort import SEQUENCES, Cohort, Study
from idh_lightning.config.places import SHIPPED
from idh_lightning.errors import CheckpointError, ConfigError
from idh_lightning.inference import HubModel, Predictor, StudyPrediction, sharing
from idh_lightning.inference.exported import export
from idh_lightning.inference.sharing import FolderFormat, share
from idh_lightning.models import WeightsOrigin
from idh_lightning.runs.assembly import _recipe
from idh_lightning.runs.state import weights_of


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the network in the package."""
    return share(SHIPPED, tmp_path_factory.mktemp("shared") / "hub")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return write_study(tmp_path_factory.mktemp("study"), "head", seed=1)


def probabilities(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.randn(2, 4, 49, 65, 49, generator=torch.Generator().manual_seed(1)))
    return found


def equal(ours: Checkpoint, theirs: Checkpoint) -> bool:
    """Whether two checkpoints hold the same, bit by bit."""
    one, other = ours._content(), theirs._content()
    weights, others = one.pop("state_dict"), other.pop("state_dict")
    same = weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    return same and json.dumps(one, default=torch.Tensor.tolist) == json.dumps(other, default=torch.Tensor.tolist)


def answer(place: str | Path, study: Study) -> StudyPrediction:
    (found,) = Predictor(place, withhold=False).predict(dict(study.files))
    return replace(found, elapsed_s=0)


def test_the_folder_is_in_the_layout_of_the_hub_and_has_a_card(shared: Path) -> None:
    assert sorted(file.name for file in shared.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = ModelCard.load(shared / "README.md")
    assert card.data.tags == ["medical", "mri", "glioma", "idh"]
    assert "checkpoint=FOLDER" in card.text


def test_a_folder_holds_all_that_the_checkpoint_does_and_answers_as_it_does(shared: Path, study: Study) -> None:
    assert equal(Checkpoint.read(SHIPPED), Checkpoint.read(shared))
    assert weights_of(shared) == shared / "config.json"
    ours, theirs = answer(SHIPPED, study), answer(shared, study)
    assert theirs == ours
    assert theirs.probability is not None


@pytest.mark.slow
def test_a_run_with_every_part_is_shared_whole_and_again_from_its_folder(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "cohort", 12)
    run = write_checkpoint(tmp_path / "run", cohort)
    folder = share(run)
    assert folder == run / "checkpoints" / "hub"
    assert equal(Checkpoint.read(run), Checkpoint.read(folder))
    assert answer(folder, cohort[-1]) == answer(run, cohort[-1])
    again = share(folder, tmp_path / "again")
    assert (again / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_the_hub_mixin_loads_and_saves_the_folder(shared: Path, tmp_path: Path) -> None:
    model = HubModel.from_pretrained(shared)
    ours = HubModel(Checkpoint.read(SHIPPED))
    assert torch.equal(probabilities(model), probabilities(ours))
    model.save_pretrained(tmp_path / "again")
    for file in shared.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_monai_loads_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = pytest.importorskip("monai.bundle", reason="monai is not installed")
    folder = share(SHIPPED, tmp_path / "idh", form="monai_bundle")
    expected = probabilities(HubModel(Checkpoint.read(SHIPPED)))
    config = str(folder / "configs" / "inference.json")
    workflow = bundle.create_workflow(config_file=config, workflow_type="inference", bundle_root=str(folder))
    assert torch.equal(probabilities(workflow.network_def), expected)
    monkeypatch.chdir(folder)
    loaded = bundle.load("idh", bundle_dir=tmp_path, workflow_type="inference", device="cpu")
    assert torch.equal(probabilities(loaded), expected)
    assert workflow.parser.get_parsed_content("_meta_::network_data_format::inputs::image")["num_channels"] == 4
    for place in (folder, folder / "models"):
        assert Predictor(place).ensemble.sequences == SEQUENCES


def test_a_changed_file_or_one_that_would_run_code_is_refused(shared: Path, tmp_path: Path) -> None:
    weights = (shared / "model.safetensors").read_bytes()
    content = json.loads((shared / "config.json").read_text())
    for target in ("os.system", "idh_lightning.files.os.system", "torch.nn.functional.importlib.import_module",
                   "idh_lightning.volumes.VolumeStore", "idh_lightning.models.load_weights"):  # fmt: skip
        folder = tmp_path / target
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
        content["recipe"]["objective"] = {"_target_": target}
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=f"would call '{target}'"):
            Checkpoint.read(folder)
    (folder / "model.safetensors").write_bytes(weights[:-4] + b"abcd")
    with pytest.raises(CheckpointError, match=r"describes other weights than model\.safetensors"):
        Checkpoint.read(folder)


def test_of_a_folder_that_lacks_a_file_the_file_is_named(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((shared / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.safetensors: there is no such file; expected it beside config"):
        Predictor(tmp_path)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    (tmp_path / "mine-2").touch()
    with pytest.raises(ConfigError, match=rf"mine is there and not empty; .* output={tmp_path / 'mine-3'}$"):
        share(SHIPPED, tmp_path / "mine")
    before = {file: file.stat().st_mtime_ns for file in shared.iterdir()}
    with pytest.raises(ConfigError, match="hub is there and not empty"):
        share(SHIPPED, shared)
    assert {file: file.stat().st_mtime_ns for file in shared.iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert (share(SHIPPED, tmp_path / "empty") / "config.json").is_file()


@pytest.mark.parametrize("form", ["hub", "monai_bundle"])
def test_a_folder_is_written_whole_or_not_at_all(
    form: FolderFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(sharing, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        share(SHIPPED, tmp_path / "new", form=form)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_refused_with_a_run_of_it_to_paste(tmp_path: Path) -> None:
    for fold in "01":
        (tmp_path / fold / "checkpoints").mkdir(parents=True)
        replace(Checkpoint.read(SHIPPED), file=tmp_path / fold / "checkpoints" / "best.ckpt").write()
    for write in (share, export):
        with pytest.raises(ConfigError, match=rf"holds 2 runs, .* checkpoint={tmp_path / '0'}$"):
            write(tmp_path, tmp_path / "new.onnx")
    assert share(tmp_path / "0", tmp_path / "hub").is_dir()


@pytest.mark.parametrize("place", ["/home/me/secret/{}", "~/secret/{}", "C:\\secret\\{}", "/home/me/se cret/a, b/{}"])
def test_what_is_shared_names_files_without_their_folders(place: str, tmp_path: Path) -> None:
    shipped = Checkpoint.read(SHIPPED)
    weights, locator = place.format("resnet.pth"), place.format("locator.safetensors")
    origin = {"requested": weights, "source": weights, "note": f"[Errno 13] denied: '{place.format('cache')}'"}
    recipe = {**shipped.recipe, "model": {**shipped.recipe["model"], "locator": locator}, "weights": origin}
    card = f"# Card\n\n- Starting weights: {weights}, {locator}\n"
    replace(shipped, file=tmp_path / "old.ckpt", recipe=recipe, model_card=card).write()
    read = Checkpoint.read(tmp_path / "old.ckpt")
    read.write_folder(tmp_path / "hub")
    (tmp_path / "hub" / "README.md").write_text(sharing._card(read))
    replace(read, file=tmp_path / "new.ckpt").write()
    for file in (*(tmp_path / "hub").iterdir(), tmp_path / "new.ckpt"):
        assert b"cret" not in file.read_bytes(), file
    assert read.recipe["weights"] == {
        "requested": "resnet.pth", "source": "resnet.pth", "note": "[Errno 13] denied: 'cache'",
    }  # fmt: skip
    assert "Starting weights: resnet.pth, locator.safetensors" in (tmp_path / "hub" / "README.md").read_text()


def test_a_recipe_is_written_without_folders(tmp_path: Path) -> None:
    cohort = Cohort(name="tiny", sequences=SEQUENCES, studies=())
    prepared: Any = SimpleNamespace(cohort=cohort)
    config = settings_of(tmp_path, "model.weights=/home/me/resnet.pth", "model.locator=/home/me/locator.safetensors")
    recipe = _recipe(config, prepared, WeightsOrigin(requested="/home/me/resnet.pth", source="/home/me/resnet.pth"))
    assert "/home/me" not in json.dumps(recipe)
    assert (recipe["model"]["weights"], recipe["model"]["locator"]) == ("resnet.pth", "locator.safetensors")
    assert recipe["model"]["_target_"] == config.model["_target_"]


@pytest.fixture
def hub(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Hub that has the shared folder as owner/name, for a client with an empty cache; the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            name = self.path.rpartition("/")[2]
            known = self.path.startswith("/owner/name/resolve/") and (shared / name).is_file()
            content = (shared / name).read_bytes() if known else b""
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(content)))
            if known:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0123456789" * 4)
            else:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    for name, value in (
        ("ENDPOINT", address),
        ("HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_CACHE", str(tmp_path / "cache")),
        ("HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(constants, name, value)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield asked
    server.shutdown()
    server.server_close()


def test_a_checkpoint_is_had_from_the_hub_once_and_then_from_the_cache(
    hub: list[str], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = probabilities(HubModel.from_pretrained(shared))
    checkpoint = Checkpoint.read("hf://owner/name")
    assert torch.equal(probabilities(HubModel(checkpoint)), expected)
    number = len(hub)
    assert number
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert Predictor("hf://owner/name").ensemble.members[0].file == checkpoint.file
    assert weights_of("hf://owner/name") == checkpoint.file
    assert len(hub) == number


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("hf://owner/other", "the hub has no model of this name, or it is private"),
        ("hf://owner/na me", "no name of a model"),
    ],
)
def test_what_the_hub_does_not_have_is_told_in_one_sentence(hub: list[str], place: str, told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Predictor(place)
    assert str(caught.value).startswith(f"{place}: cannot be had ({told}")
    assert "\n" not in str(caught.value)


def test_without_a_network_the_remedy_is_a_folder(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://nowhere.invalid")
    with pytest.raises(CheckpointError, match=r"its address is not found.*give checkpoint=FOLDER"):
        Checkpoint.read("hf://owner/name")
    assert not hub
