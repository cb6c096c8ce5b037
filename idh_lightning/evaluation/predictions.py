"""predictions.csv and cohort.csv: checked, joined, and reduced to one row per patient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from idh_lightning.cohort import SPLITS
from idh_lightning.errors import EvaluationError
from idh_lightning.evaluation.cross_validation import Folds
from idh_lightning.evaluation.postprocessing import DECISIONS, PostProcessing

_COHORT = ("study_id", "patient_id", "split", "label")

BRANCH_LOGITS = ("logit_deep", "logit_reader", "logit_vote")
"""Columns of predictions.csv: logits of deep layers, radiomics head and dense vote, whose mean `logit` is."""


def branch_logits_in(table: pd.DataFrame) -> list[str]:
    """Those of `BRANCH_LOGITS` that a table has: none where the network had no locator."""
    return [column for column in BRANCH_LOGITS if column in table]


def join(
    predictions: pd.DataFrame,
    cohort: pd.DataFrame,
    *,
    required: Sequence[str] = ("validation", "test"),
    features: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per study of the cohort with its logit (NaN where the network was not asked), sorted.

    Args:
        predictions: study_id, patient_id, split, label, logit and, where there are any, `BRANCH_LOGITS`; further
            columns are left aside.
        cohort: study_id, patient_id, split, label, and what is known of the patients: age_years, sex, follow_up,
            carried columns. Every study of a required split needs a prediction.
        required: Splits that need patients of both classes.
        features: study_id and numeric columns, for example of the tumour; they come out as `feature <name>`.

    Raises:
        EvaluationError: Listing everything that is wrong with the tables.
    """
    faults = _missing_columns(predictions, (*_COHORT, "logit"), "predictions")
    faults += _missing_columns(cohort, _COHORT, "cohort")
    _raise(faults if features is None else faults + _missing_columns(features, ("study_id",), "features"))
    predicted, studies = _with_text_ids(predictions), _with_text_ids(cohort)
    faults = _faults_of_one(predicted, "predictions") + _faults_of_one(studies, "cohort")
    logits = pd.to_numeric(predicted["logit"], errors="coerce")
    faults += [
        f"predictions, study {study}: the logit is {value}; expected a finite number. "
        "Look for overflow in training, then predict again."
        for study, value in predicted.loc[~np.isfinite(logits), ["study_id", "logit"]].itertuples(index=False)
    ]
    _raise(faults)
    _raise(_faults_between(predicted, studies))
    kept = ["logit", *branch_logits_in(predicted)]
    joined = studies.drop(columns=[*kept, "probability"], errors="ignore").merge(
        predicted.assign(logit=logits)[["study_id", *kept]], on="study_id", how="left"
    )
    _raise([fault for split in required for fault in _faults_of_split(joined[joined["split"] == split], split)])
    joined = _with_covariates(joined, features)
    return joined.sort_values(["patient_id", "follow_up", "study_id"], kind="stable").reset_index(drop=True)


def read_table(path: Path) -> pd.DataFrame:
    """CSV table of a run with its identifiers as text: 0012 is not 12, and a patient may be called NA.

    So are the columns that a cohort carries, such as sites: 01 is not 1, and only what is empty is not known.
    """
    columns = pd.read_csv(path, nrows=0).columns
    if not {"split", "follow_up"} <= set(columns):
        return pd.read_csv(path, converters={"study_id": str, "patient_id": str, "run": str})
    text = {name: str for name in columns if name not in ("label", "fold", "age_years", "follow_up")}
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])


def per_patient(studies: pd.DataFrame) -> pd.DataFrame:
    """One row per patient: the mean logits of the patient's studies, all else from the first that has it.

    Patients are independent of each other and their studies are not, so patients are what is counted. The first
    study is the one before any follow-up.
    """
    # Not sorted again: `join` did, and it is the order that makes results independent of the order of the files.
    groups = studies.groupby("patient_id", sort=False)
    patients = groups.first()
    for column in ("logit", *branch_logits_in(studies)):
        patients[column] = groups[column].mean()
    patients["studies"] = groups.size()
    return patients.reset_index()


def patient_predictions(studies: pd.DataFrame, learnt: PostProcessing | Folds) -> pd.DataFrame:
    """Predictions of patients: the mean logit over a patient's studies, then calibration, then the threshold.

    The one rule for a patient with several studies: metrics, comparisons of runs, pages and the model card call it.

    Args:
        studies: Rows of predictions.csv or of `join`; of pooled folds, from `Folds.calibrated`.
        learnt: Calibration, threshold and prediction sets.

    Returns:
        One row per patient: the columns of `per_patient`, and raw_probability, probability, predicted, prediction_set.

    Raises:
        EvaluationError: If a patient has two labels.
    """
    if (studies.groupby("patient_id")["label"].nunique() > 1).any():
        raise EvaluationError("predictions: a patient has two labels; expected one. Correct the table.")
    patients = per_patient(studies.drop(columns=list(DECISIONS), errors="ignore"))
    return pd.concat([patients, learnt.decide(patients)], axis=1)


def _missing_columns(table: pd.DataFrame, needed: Sequence[str], name: str) -> list[str]:
    missing, found = [column for column in needed if column not in table], ", ".join(map(str, table.columns))
    told = f"{name}: no column {', '.join(missing)}; found {found}. Give the table that a run wrote."
    return [told] if missing else []


def _with_text_ids(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(study_id=table["study_id"].astype(str), patient_id=table["patient_id"].astype(str))


def _faults_of_one(table: pd.DataFrame, name: str) -> list[str]:
    faults = [
        f"{name}, study {study}: listed {count} times; expected once. Evaluate one run (one fold) at a time."
        for study, count in table["study_id"].value_counts().items()
        if count > 1
    ]
    faults += [
        f"{name}, study {study}: split is {split!r}; expected {', '.join(SPLITS)}. Correct the table."
        for study, split in table.loc[~table["split"].isin(SPLITS), ["study_id", "split"]].itertuples(index=False)
    ]
    faults += [
        f"{name}, study {study}: label is {label!r}; expected 0 or 1, the positive class. Correct the table."
        for study, label in table.loc[~table["label"].isin([0, 1]), ["study_id", "label"]].itertuples(index=False)
    ]
    remedies = {"split": "Split by patient.", "label": "A patient has one label; correct the table."}
    for column, remedy in remedies.items():
        for patient, values in table.groupby("patient_id")[column].unique().items():
            if len(values) > 1:
                listed = " and ".join(sorted(map(str, values)))
                faults.append(f"{name}, patient {patient}: {column} is {listed}; expected one. {remedy}")
    return faults


def _faults_between(predicted: pd.DataFrame, studies: pd.DataFrame) -> list[str]:
    """Faults of predictions that the cohort contradicts."""
    faults = [
        f"predictions, study {study}: not in the cohort; expected every study there. Give the tables of one run."
        for study in sorted(set(predicted["study_id"]) - set(studies["study_id"]))
    ]
    both = predicted[list(_COHORT)].merge(studies[list(_COHORT)], on="study_id", suffixes=("", "_cohort"))
    for column in ("patient_id", "split", "label"):
        faults += [
            f"predictions, study {row['study_id']}: {column} is {row[column]}; expected {row[f'{column}_cohort']} as "
            "in the cohort. Give the tables of one run."
            for _, row in both[both[column] != both[f"{column}_cohort"]].iterrows()
        ]
    return faults


def _faults_of_split(studies: pd.DataFrame, split: str) -> list[str]:
    """Faults of a split that needs a prediction of every study and patients of both classes."""
    if studies.empty:
        why = "no patients; expected some. Predict this split, or change the split settings."
        return [f"predictions, split {split}: {why}"]
    faults = [
        f"predictions, split {split}, study {study}: absent; expected a prediction for every study of the cohort. "
        "Predict it, or leave it out of the cohort."
        for study in studies.loc[studies["logit"].isna(), "study_id"]
    ]
    if studies["label"].nunique() < 2:
        faults.append(
            f"predictions, split {split}: all patients have label {studies['label'].iloc[0]}; expected both "
            "classes. Change the split settings or add patients."
        )
    return faults


def _with_covariates(studies: pd.DataFrame, features: pd.DataFrame | None) -> pd.DataFrame:
    """Studies with follow_up as booleans, age as a number, sex_male and the columns `feature <name>`."""
    studies = studies.assign(
        follow_up=studies["follow_up"].astype(str).str.lower().isin(["true", "1", "1.0", "yes"])
        if "follow_up" in studies
        else False
    )
    if "age_years" in studies:
        studies["age_years"] = pd.to_numeric(studies["age_years"], errors="coerce")
    if "sex" in studies:
        studies["sex_male"] = studies["sex"].map({"F": 0.0, "M": 1.0}).astype(float)
    if features is None:
        return studies
    measured = features.assign(study_id=features["study_id"].astype(str)).set_index("study_id")
    measured = measured.select_dtypes("number").add_prefix("feature ")
    return studies.merge(measured, left_on="study_id", right_index=True, how="left")


def _raise(faults: Sequence[str]) -> None:
    if faults:
        raise EvaluationError("\n".join(faults))
