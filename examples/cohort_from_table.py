"""A cohort from a table with columns of its own: read it, see what is wrong with it, split it by patient."""

import tempfile
from pathlib import Path

import pandas as pd

from idh_lightning.cohort import HoldOut, Table
from idh_lightning.phantom import PhantomCohort


def main() -> None:
    """Write synthetic patients and a table that names their files, then read the table."""
    with tempfile.TemporaryDirectory() as folder:
        studies = PhantomCohort(folder, patients=24, spacing_mm=6.0, workers=1).read().studies
        rows = [
            {
                "scan": study.study_id,
                "patient": study.patient_id,
                "IDH status": "IDH1 R132H" if study.label else "wt",
                "T2-FLAIR": study.files["FLAIR"],
                "T1ce": study.files["T1c"],
                "seg": study.mask,
                "site": "A",
            }
            for study in studies
        ]
        rows[3]["IDH status"] = "pending"
        table = Path(folder) / "my_table.csv"
        pd.DataFrame(rows).to_csv(table, index=False)

        cohort = Table(table=table).read()
        print(*cohort.notes, sep="\n")
        print(f"{len(cohort.studies)} studies, sequences {', '.join(cohort.sequences)}")
        for fault in cohort.faults:
            print(f"{fault.severity}: {fault}")
        split = HoldOut(seed=0, validation=0.2, test=0.2)(cohort)
        print(split.groupby(["split", "label"]).size().unstack())


if __name__ == "__main__":
    main()
