"""How good a network is, and how sure one can be of that: pure functions of predictions.csv and cohort.csv.

Patients are counted, not studies: a patient with several studies has the mean of their logits, and is in one split.
Every statistic is `{value, low, high, n, method}`, with `n` the patients it rests on (sensitivity: the mutants). A
number that cannot be given is null, and the entry says `why`. Intervals are 95 % unless set otherwise.

`Evaluation` returns `Results`, whose `metrics` become metrics.json:

- `settings`: `confidence`, `bootstrap`, `seed`, `minimum_group`.
- `splits`: train, validation, test -> `n` patients, `n_mutant`, `studies`.
- `validation`, `test`: `auroc` (DeLong), `auroc_bootstrap` (BCa; the better interval where a class has fewer than about
  100 patients, since DeLong's is too narrow there), `average_precision`, `prevalence`, `accuracy`, `balanced_accuracy`,
  `sensitivity`, `specificity`, `ppv`, `npv`, `f1` (mutant), `f1_macro`, `f1_weighted`, `mcc`, `brier`, `log_loss`,
  `ece`, `calibration_slope`, `calibration_intercept`. Those of validation are optimistic: the epoch, the operating
  point and the calibration were chosen there.
- `confusion`: split -> `tn`, `fp`, `fn`, `tp`.
- `predictive_values`: list of `{prevalence, ppv, npv}`, test.
- `operating_point`: `threshold` (of the calibrated probability), `rule`, `target`, `sensitivity`, `specificity`, `n`,
  `split`.
- `calibration`: `method`, `slope`, `intercept`, `temperature`, `split`, `n`, and `raw`: split -> `brier`, `log_loss`,
  `ece`, `calibration_slope`, `calibration_intercept` before it.
- `baselines`: prevalence, age, age_sex, features, model_age -> `columns`, `coefficients`, `intercept`, `fitted_on`,
  `n`, `operating_point`, and `validation`, `test` as above; or `why`.
- `comparisons`: model_vs_prevalence, model_vs_age, model_vs_age_sex, model_vs_features, model_age_vs_age -> `first`,
  `second` (areas), `difference`, `z`, `p_value`, `n`; or `why`. Test patients, paired DeLong.
- `decision_curves`: `thresholds`, `model`, `age` (where known), `treat_all`, `treat_none`, `n`, `band` (`strategy`,
  `low`, `high`), test.
- `subgroups`: grade, diagnosis, sex, site, biopsy_before_imaging, follow_up, age -> `column`, `groups`: name -> `n`,
  `n_mutant`, `auroc`, `accuracy`, `sensitivity`, `specificity`; and `within_auroc`, over pairs of the same group; or
  `why`. Test.
- `sensitivity_analyses`: without_astrocytoma_wildtype, without_follow_ups -> `column`, `value`, `studies_left_out`,
  `n`, `n_mutant`, `studies`, `metrics` (as `test`) or `why`; `every_study` -> areas over studies, those of
  a patient resampled together.
- `conformal`: `coverage`, `wildtype`, `mutant` (quantiles), `n_wildtype`, `n_mutant`, and split -> `coverage`,
  `coverage_wildtype`, `coverage_mutant`, `one_class`, `both_classes`, `no_class`, `accuracy_of_one_class`.
- `curves`: split -> `roc` (`fpr`, `tpr`), `precision_recall` (`precision`, `recall`, `prevalence`), `reliability`
  (`raw`, `calibrated` -> `predicted`, `observed`, `low`, `high`, `n`, lists).

On another cohort, with `learnt` from a checkpoint, there is no `validation`.
"""

from idh_lightning.evaluation.calibration import Calibrator
from idh_lightning.evaluation.decisions import ConformalSets, OperatingPoint
from idh_lightning.evaluation.discrimination import auroc, compare_auroc
from idh_lightning.evaluation.evaluation import Evaluation, Learnt, Results, measure
from idh_lightning.evaluation.features import tumour_features
from idh_lightning.evaluation.runs import compare_runs, patient_predictions, pool, pooled_scores, spread
from idh_lightning.evaluation.tables import per_patient

__all__ = [
    "Calibrator",
    "ConformalSets",
    "Evaluation",
    "Learnt",
    "OperatingPoint",
    "Results",
    "auroc",
    "compare_auroc",
    "compare_runs",
    "measure",
    "patient_predictions",
    "per_patient",
    "pool",
    "pooled_scores",
    "spread",
    "tumour_features",
]
