"""A probability for one study from Python: `python examples/predict_one_study.py RUN_FOLDER [STUDY_FOLDER]`.

RUN_FOLDER is what training printed, `outputs/.../..._phantom` after `make train`. Without a study a synthetic patient
is made whom that run has not seen.
"""

import sys
import tempfile
from pathlib import Path

from idh_lightning import Predictor
from idh_lightning.phantom import PhantomCohort


def main() -> None:
    """Print what is said of each study in a folder."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as root:
        if len(sys.argv) == 3:
            folder = Path(sys.argv[2])
        else:
            stranger = PhantomCohort(root, patients=10, spacing_mm=2.0, seed=1, workers=1).read().studies[0]
            folder = stranger.files["FLAIR"].parent
        for answer in Predictor(sys.argv[1], views=2).predict(folder):
            print(f"{answer.study_id}: {answer.status}")
            if answer.given:
                print(
                    f"  P(mutant) {answer.probability:.2f} ({answer.low:.2f} to {answer.high:.2f}), {answer.decision}"
                )
            for words in (*answer.reasons, *answer.warnings):
                print(f"  {words}")


if __name__ == "__main__":
    main()
