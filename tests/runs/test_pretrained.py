"""The network that the package ships: it answers without a checkpoint, says what it is, and finds the tumour."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import map_coordinates
from tiny_checkpoint import tiny_cohort
from tiny_pretrained import drawn_heads, small_segmenter, write_tiny
from tiny_studies import write_study

from idh_lightning import checkpoint as checkpoint_module
from idh_lightning.attribution import DenseVote
from idh_lightning.attribution.maps import methods_named
from idh_lightning.attribution.sanity import cascade
from idh_lightning.checkpoint import Checkpoint
from idh_lightning.cli.entry import composed
from idh_lightning.cohort import Cohort, Study, new_studies
from idh_lightning.commands.evaluating import evaluate, without_seen
from idh_lightning.commands.predicting import predict
from idh_lightning.config.instantiation import instantiate_section
from idh_lightning.errors import CheckpointError, CohortError, ConfigError, EvaluationError, ModelError
from idh_lightning.inference import Predictor
from idh_lightning.inference.predictor import LEAST_TUMOUR_ML
from idh_lightning.models import VotingNetwork, tumour_probability
from idh_lightning.models.segmentation import PRETRAINED, dense_vote
from idh_lightning.ood import study_descriptor
from idh_lightning.runs.pretrained import DrawnStudy, calibrate_pretrained, describe_pretrained, write_pretrained
from idh_lightning.volumes import VolumeStore

NOTICE = "Learnt from synthetic patients only; not calibrated on real ones."


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    return tiny_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def drawn(cohort: list[Study]) -> list[DrawnStudy]:
    return drawn_heads(cohort)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, drawn: list[DrawnStudy]) -> Path:
    return write_tiny(tmp_path_factory.mktemp("shipped"), drawn)


@pytest.fixture
def shipped(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small network in the place of that in the package."""
    monkeypatch.setattr(checkpoint_module, "PRETRAINED", written / PRETRAINED.name)
    return written


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """The folder of a new study."""
    write_study(tmp_path / "new", "patient", seed=100, mask=False)
    return tmp_path / "new" / "patient"


@pytest.fixture
def network() -> VotingNetwork:
    return VotingNetwork(locator=small_segmenter()).eval()


def volumes(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, 17, 21, 19, generator=torch.Generator().manual_seed(2))


# The network and its map


def test_the_logits_of_the_network_are_the_dense_vote(network: VotingNetwork) -> None:
    with torch.no_grad():
        logits, vote = network(volumes()), dense_vote(network.locator(volumes()))
    assert vote.abs().min() > 0
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], vote)
    torch.testing.assert_close(logits.sum(dim=1), torch.zeros(2))


def test_the_contributions_of_the_voxels_sum_to_the_logit_and_the_map_shows_those_for_the_class(
    network: VotingNetwork,
) -> None:
    signed = DenseVote().contributions(network, volumes())
    with torch.no_grad():
        logits = network(volumes())
    difference = logits[:, 1] - logits[:, 0]
    torch.testing.assert_close(signed.sum((1, 2, 3)), difference)
    maps = DenseVote()(network, volumes())
    assert (maps.amax((1, 2, 3)) == 1).all()
    assert maps.min() == 0
    assert torch.equal(maps > 0, signed * difference.sign()[:, None, None, None] > 0)


def test_the_dense_vote_of_a_network_without_a_locator_is_refused() -> None:
    with pytest.raises(ModelError, match="need a network with a locator"):
        DenseVote()(torch.nn.Linear(1, 1), volumes())


def test_a_mirrored_study_gets_the_same_vote_and_the_mirrored_tumour(network: VotingNetwork) -> None:
    seen, mirrored = volumes(), volumes().flip(4)
    with torch.no_grad():
        one, other = network.answer(seen), network.answer(mirrored)
    assert torch.allclose(one.logits, other.logits, atol=1e-5)
    assert one.tumour is not None
    assert other.tumour is not None
    assert torch.allclose(one.tumour, other.tumour.flip(3), atol=1e-5)
    assert not torch.allclose(one.tumour, other.tumour, atol=1e-3)


def test_methods_that_do_not_fit_the_voting_network_are_left_out_and_the_others_explain_it(
    network: VotingNetwork,
) -> None:
    with pytest.raises(ConfigError, match=r"found evidence, grad_cam; .* methods=\[dense_vote,integrated_gradients"):
        methods_named(["evidence", "dense_vote", "grad_cam"], network)
    with pytest.raises(CheckpointError, match="found several, a, b; expected one"):
        Checkpoint.read(["a", "b"])  # type: ignore[arg-type]
    names = [method.name for method in methods_named(None, network)]
    assert "Dense vote" in names
    assert not [name for name in names if "CAM" in name or name == "Evidence"]
    gradients = next(method for method in methods_named(None, network) if method.name == "Integrated gradients")
    assert (gradients(network, volumes()).amax((1, 2, 3)) == 1).all()


def test_a_random_last_layer_changes_the_dense_vote_and_leaves_the_network_as_it_was(network: VotingNetwork) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rows = cascade([DenseVote()], network, volumes())
    assert rows["module"].iloc[0] == "locator.leave"
    assert set(rows["part"]) == {"tail", "stem"}
    assert rows["spearman"].max() < 0.9
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# What ships


def test_a_written_network_is_read_again_with_all_that_a_checkpoint_holds(written: Path) -> None:
    found = Checkpoint.pretrained(written)
    post_processing, development = found.reported()
    assert post_processing.operating_point.threshold == 0.5
    assert found.notice == NOTICE
    assert found.model_card == "# A tiny card\n"
    assert development.cohort == "synthetic patients"
    assert found.recipe["preprocessing"]["missing"] == "zero"
    assert isinstance(found.network(), VotingNetwork)
    with torch.no_grad():  # half precision is all that is lost
        apart = (found.network()(volumes()) - _in_half(small_segmenter())(volumes())).abs().max()
    assert apart == 0


def _in_half(segmenter: torch.nn.Module) -> VotingNetwork:
    network = VotingNetwork(locator=small_segmenter())
    network.locator.load_state_dict({key: value.half().float() for key, value in segmenter.state_dict().items()})
    return network.eval()


def test_the_detector_judges_as_before_it_was_written(
    written: Path, drawn: list[DrawnStudy], cohort: list[Study], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.pretrained(written)
    network = checkpoint.network()
    content = describe_pretrained(network.locator, drawn, card="")
    store = VolumeStore(tmp_path, _preprocessing_of(checkpoint), checkpoint.sequences)
    store.prepare(cohort[:1], workers=1)
    seen = study_descriptor(store.open(cohort[0]), network)
    again = checkpoint.ood_detector
    fresh = type(again).from_dict(content["ood_detector"])
    assert again.statistics(seen) == pytest.approx(fresh.statistics(seen), rel=1e-3)
    assert again.limit == pytest.approx(fresh.limit, rel=1e-5)


def _preprocessing_of(checkpoint: Checkpoint) -> object:
    return instantiate_section(checkpoint.recipe["preprocessing"])


def test_a_description_of_other_weights_and_absent_files_are_refused(
    tmp_path: Path, drawn: list[DrawnStudy], written: Path
) -> None:
    with pytest.raises(CheckpointError, match="experiment=pretrain_locator"):
        Checkpoint.pretrained(tmp_path)
    write_tiny(tmp_path, drawn, tumour=-1.0)
    (tmp_path / "pretrained.json").write_bytes((written / "pretrained.json").read_bytes())
    with pytest.raises(CheckpointError, match="describes other weights"):
        Checkpoint.pretrained(tmp_path)
    (tmp_path / "pretrained.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be used"):
        Checkpoint.pretrained(tmp_path)


def test_too_few_drawn_studies_describe_nothing(drawn: list[DrawnStudy], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected at least 20"):
        write_pretrained(tmp_path, small_segmenter(), drawn[:19], card="")


def test_nothing_keeps_the_shipped_files_out_of_the_wheel() -> None:
    project = Path(__file__).parents[2]
    wheel = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["idh_lightning"]
    assert not {"exclude", "only-include", "artifacts"} & wheel.keys()
    names = [str(PRETRAINED), str(PRETRAINED.with_name("pretrained.json"))]  # hatch leaves out what git ignores
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", *names], cwd=project, capture_output=True, check=False
    )
    assert ignored.returncode == 1, ignored.stdout


# A new patient


def test_predict_without_a_checkpoint_answers_with_a_flag_a_tumour_and_a_map(
    shipped: Path, patient: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    (answer,) = predict(composed("predict", [f"input={patient}", f"output={output}", "withhold=false"]))
    assert answer.status == "flagged"
    assert answer.warnings[0] == NOTICE
    assert answer.prediction_set is None
    assert answer.decision == ("mutant" if answer.probability >= 0.5 else "wildtype")
    assert " ".join(capsys.readouterr().out.split()).count(NOTICE) == 1  # above the table, not in each of its rows
    told = json.loads((output / "predictions.json").read_text())
    assert told["notices"] == [NOTICE]
    (row,) = pd.read_csv(output / "predictions.csv").to_dict("records")
    assert row["warnings"].startswith(NOTICE)
    page = (output / "patient.html").read_text()
    assert NOTICE in page
    assert "chosen on no patient" in page
    assert f"{answer.tumour_ml:.1f} mL" in page
    for name in ("map", "tumour"):
        image, flair = nib.load(output / row[name]), nib.load(patient / "patient_FLAIR.nii.gz")
        assert image.shape == flair.shape
        np.testing.assert_allclose(image.affine, flair.affine, atol=1e-5)
    assert row["tumour_ml"] == pytest.approx(answer.tumour_ml, abs=0.01)


def test_the_tumour_is_where_the_interpolated_probability_is_half_or_more(
    shipped: Path, patient: Path, tmp_path: Path
) -> None:
    predictor = Predictor(withhold=False)
    (answer,) = predictor.answers(predictor.found(patient), tmp_path)
    stored, network = _stored(predictor, patient, tmp_path), predictor.ensemble.members[0].network
    probability = tumour_probability(network, _volume(stored))[0].numpy() * (np.asarray(stored.brain) > 0)
    mask = nib.load(answer.tumour_file)
    found = np.asarray(mask.dataobj)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 1}
    assert answer.tumour_ml == pytest.approx(found.sum() * abs(np.linalg.det(mask.affine)) / 1000)
    # Independently: each voxel of the file, in mm, in the voxels of the grid.
    indices = np.stack(np.meshgrid(*map(np.arange, found.shape), indexing="ij"))
    to_grid = np.linalg.inv(stored.affine_ras) @ mask.affine
    places = np.tensordot(to_grid[:3, :3], indices, 1) + to_grid[:3, 3, None, None, None]
    expected = map_coordinates(probability, places[::-1], order=1, mode="constant")
    sure = np.abs(expected - 0.5) > 1e-3
    np.testing.assert_array_equal(found[sure] > 0, expected[sure] >= 0.5)


def test_the_probability_is_that_of_the_network_called_by_hand(shipped: Path, patient: Path, tmp_path: Path) -> None:
    predictor = Predictor(withhold=False)
    (answer,) = predictor.predict(patient)
    voxels = _in_half(small_segmenter()).locator(_volume(_stored(predictor, patient, tmp_path)))
    assert answer.probability == pytest.approx(float(torch.sigmoid(dense_vote(voxels).detach())), abs=1e-6)


def _stored(predictor: Predictor, patient: Path, folder: Path) -> object:
    store = VolumeStore(folder / "store", predictor.ensemble.preprocessing, predictor.ensemble.sequences)
    study = new_studies(patient)[0].study
    store.prepare([study], workers=1)
    return store.open(study)


def _volume(stored: object) -> torch.Tensor:
    return torch.from_numpy(np.array(stored.image, dtype=np.float32))[None]


def test_a_study_without_t2_is_answered_and_one_without_flair_and_t2_is_not(shipped: Path, patient: Path) -> None:
    (patient / "patient_T2.nii.gz").unlink()
    predictor = Predictor(withhold=False)
    (answer,) = predictor.predict(patient)
    assert answer.status == "flagged"
    assert any("T2 is missing" in warning for warning in answer.warnings)
    (patient / "patient_FLAIR.nii.gz").unlink()
    (answer,) = predictor.predict(patient)
    assert answer.status == "failed"
    assert "none of FLAIR and T2 is there" in answer.reasons[0]
    assert "flair=" in answer.reasons[0]


def test_a_study_without_a_tumour_gets_no_number_unless_it_is_asked_for(
    drawn: list[DrawnStudy], patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny(tmp_path / "blind", drawn, tumour=-1e4)
    monkeypatch.setattr(checkpoint_module, "PRETRAINED", folder / PRETRAINED.name)
    (answer,) = Predictor().predict(patient)
    assert answer.status == "withheld"
    assert "no tumour" in answer.unlike
    assert any(reason.startswith("No tumour found: 0.00 mL") for reason in answer.reasons)
    assert answer.tumour_ml == 0 < LEAST_TUMOUR_ML
    (asked,) = Predictor(withhold=False).predict(patient)
    assert asked.status == "flagged"
    assert asked.warnings[0] == NOTICE
    assert any(warning.startswith("No tumour found") for warning in asked.warnings)


# Calibration on real patients


def predictions(folder: Path, number: int) -> Path:
    chance = np.random.default_rng(0)
    labels = np.arange(number) % 2
    logits = 2.0 * labels + chance.normal(0, 1, number)
    table = {
        "study_id": [f"s{index}" for index in range(number)],
        "patient_id": [f"p{index}" for index in range(number)],
    }
    pd.DataFrame(table | {"label": labels, "logit": logits}).to_csv(folder / "predictions.csv", index=False)
    return folder / "predictions.csv"


def test_a_calibrated_network_says_on_whom_and_knows_them_again(tmp_path: Path, drawn: list[DrawnStudy]) -> None:
    folder = write_tiny(tmp_path / "shipped", drawn)
    calibrate_pretrained(folder, predictions(tmp_path, 40), "two hospitals")
    found = Checkpoint.pretrained(folder)
    post_processing, development = found.reported()
    assert found.notice == "Learnt from synthetic patients only; calibrated on 40 real patients (two hospitals)."
    assert post_processing.calibrator.slope > 0
    assert post_processing.operating_point.n == 40
    assert post_processing.conformal.n_mutant == 20
    assert np.all(np.linalg.eigvalsh(found.calibration_covariance) > 0)
    known, other = (Study(study_id=name, patient_id=name, label=0, files={}) for name in ("p7", "somebody"))
    sightings = development.seen.find([known, other], {"p7": [], "somebody": []})
    assert [one.study.patient_id for one in sightings] == ["p7"]


def test_too_few_patients_or_no_labels_calibrate_nothing(tmp_path: Path, drawn: list[DrawnStudy]) -> None:
    folder = write_tiny(tmp_path / "shipped", drawn)
    with pytest.raises(EvaluationError, match="expected at least 10"):
        calibrate_pretrained(folder, predictions(tmp_path, 8), "")
    pd.read_csv(tmp_path / "predictions.csv").drop(columns="label").to_csv(tmp_path / "predictions.csv", index=False)
    with pytest.raises(EvaluationError, match="has no column label"):
        calibrate_pretrained(folder, tmp_path / "predictions.csv", "")
    assert Checkpoint.pretrained(folder).notice == NOTICE


def test_a_cohort_with_studies_that_cannot_be_judged_is_refused_with_their_names(shipped: Path) -> None:
    blind = Study(study_id="only-t1", patient_id="p", label=0, files={"T1": Path("t1.nii.gz")})
    named = Cohort(name="c", sequences=("FLAIR", "T1", "T1c", "T2"), studies=(blind,))
    with pytest.raises(CohortError, match=r"(?s)only-t1: none of FLAIR and T2.*cohort.exclude=\[only-t1\]"):
        without_seen(named, None, checkpoint=Checkpoint.read("pretrained"), means=["image"], exclude=False)


@pytest.mark.slow
def test_evaluate_judges_it_on_a_table_without_t2_and_the_report_says_what_it_is(
    shipped: Path, tmp_path: Path, cohort: list[Study]
) -> None:
    rows = [
        {
            "study_id": study.study_id,
            "patient_id": study.patient_id,
            "idh": ("wildtype", "mutant")[index % 2],
            **{name: study.files[name] for name in ("FLAIR", "T1", "T1c")},
            "tumor_segmentation": study.mask,
        }
        for index, study in enumerate(cohort[:8])
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    places = [f"paths.{name}={tmp_path / name}" for name in ("run", "store", "data")]
    settings = ["cohort=table", f"cohort.table={tmp_path / 'cohort.csv'}", "evaluation.bootstrap=100", "name=x"]
    metrics = evaluate(composed("evaluate", ["checkpoint=pretrained", *settings, *places]))
    assert metrics["external"]["notice"] == NOTICE
    assert NOTICE in (tmp_path / "run" / "report.html").read_text()
    table = pd.read_csv(tmp_path / "run" / "predictions.csv")
    assert len(table) == 8
    np.testing.assert_allclose(table["probability"], table["raw_probability"])  # not calibrated
    assert set(table["prediction_set"]) == {"both"}
    assert len(list((tmp_path / "run" / "explanations").glob("*_cam.nii.gz"))) == 8


# Real patients


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("without", [(), ("t2w",)])
def test_a_real_study_is_answered_without_a_checkpoint(shipped: Path, tmp_path: Path, without: tuple[str, ...]) -> None:
    source = Path(os.environ["IDH_REAL_DATA"]) / "brats2023" / "BraTS-GLI-00012-000"
    folder = tmp_path / "patient"
    folder.mkdir()
    for file in source.glob("*.nii.gz"):
        if not file.name.endswith(tuple(f"-{name}.nii.gz" for name in (*without, "seg"))):
            (folder / file.name).symlink_to(file)
    output = tmp_path / "out"
    (answer,) = predict(composed("predict", [f"input={folder}", f"output={output}", "withhold=false"]))
    assert answer.status == "flagged"
    flair = nib.load(next(folder.glob("*-t2f.nii.gz")))
    for file in (answer.map_file, answer.tumour_file):
        image = nib.load(file)
        assert image.shape == flair.shape
        np.testing.assert_allclose(image.affine, flair.affine, atol=1e-5)
    predictor = Predictor(withhold=False)
    voxels = predictor.ensemble.members[0].network.locator(_volume(_stored(predictor, folder, tmp_path)))
    assert answer.probability == pytest.approx(float(torch.sigmoid(dense_vote(voxels).detach())), abs=1e-6)
