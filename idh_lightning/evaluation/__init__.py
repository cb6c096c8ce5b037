"""How good a network is, and how sure one can be of that: pure functions of predictions.csv and cohort.csv.

Patients are counted, not studies: a patient with several studies has the mean of their logits, and is in one split.
Every statistic is `{value, low, high, n, method}`, with `n` the patients it rests on (sensitivity: the mutants). A
number that cannot be given is null, and the entry says `why`. Intervals are 95 % unless set otherwise.

`Evaluation` returns `Results`, whose `metrics` become metrics.json:

- `settings`: `confidence`, `bootstrap`, `seed`, `minimum_group`.
- `splits`: train, validation, test -> `n` patients, `n_mutant`, `studies`.
- `validation`, `test`: `auroc` (with the bootstrap's interval, BCa: the one that is shown), `auroc_delong` (with
  DeLong's, too narrow where a class has fewer than about 100 patients), `average_precision`, `prevalence`, `accuracy`,
  `balanced_accuracy`, `sensitivity`, `specificity`, `ppv`, `npv`, `f1` (mutant), `f1_macro`, `f1_weighted`, `mcc`,
  `brier`, `log_loss`, `ece`, `calibration_slope`, `calibration_intercept`. Those of validation are optimistic: the
  epoch, the operating point and the calibration were chosen there.
- `confusion`: split -> `tn`, `fp`, `fn`, `tp`.
- `predictive_values`: list of `{prevalence, ppv, npv}`, test.
- `operating_point`: `threshold` (of the calibrated probability), `rule`, `target`, `sensitivity`, `specificity`, `n`,
  `split`.
- `calibration`: `method`, `slope`, `intercept`, `temperature`, `split`, `n`, and `raw`: split -> `brier`, `log_loss`,
  `ece`, `calibration_slope`, `calibration_intercept` before it.
- `baselines`: prevalence, age, age_sex, features, model_age, and, of a network with a reader, deep and reader (its two
  opinions, each alone) -> `columns`, `coefficients`, `intercept`, `fitted_on`, `n`, `operating_point`, and
  `validation`, `test` as above; or `why`.
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

On another cohort, with `learnt` from a checkpoint, there is no `validation`, and `external` holds `trained_on`
(cohort), `n_train`, `left_out` (studies of patients seen in training or validation), `seen_by`, `internal` (metric ->
the result on the internal test patients), `differences` (metric -> this cohort minus internal) or `why` there are
none, and `shift` (`mutant`, `age_years`, `brain_ml`, `tumour_ml`, ... -> `reference`, `other`, `difference`, `ks`,
`p_value`).

Of pooled folds, `operating_point`, `calibration`, `conformal` and each baseline have `runs`: run -> what that run
learnt. `runs` holds `relation` ("folds" or "same patients"), `folders`, `left_out`, `settings` (overrides that
differ), `config` (what the recipes share), `spread`; where runs are compared, that is all, with `test` (run ->
metrics), `pairs` (`names`, and as `comparisons`, with `p_holm`), `n` and `n_mutant`.
"""

from idh_lightning.evaluation.calibration import Calibrator
from idh_lightning.evaluation.comparison import compare_all, compare_runs, pool, relation, spread
from idh_lightning.evaluation.cross_validation import Folds
from idh_lightning.evaluation.decisions import ConformalSets, OperatingPoint
from idh_lightning.evaluation.development import DevelopmentCohort, ImageCovariates, image_covariates
from idh_lightning.evaluation.discrimination import compare_auroc
from idh_lightning.evaluation.features import tumour_features
from idh_lightning.evaluation.postprocessing import PostProcessing
from idh_lightning.evaluation.predictions import patient_predictions, per_patient, read_table
from idh_lightning.evaluation.protocol import Evaluation, Fold, Results, measure
from idh_lightning.evaluation.shift import compare_with_internal, covariate_shift, covariate_summary

__all__ = [
    "Calibrator",
    "ConformalSets",
    "DevelopmentCohort",
    "Evaluation",
    "Fold",
    "Folds",
    "ImageCovariates",
    "OperatingPoint",
    "PostProcessing",
    "Results",
    "compare_all",
    "compare_auroc",
    "compare_runs",
    "compare_with_internal",
    "covariate_shift",
    "covariate_summary",
    "image_covariates",
    "measure",
    "patient_predictions",
    "per_patient",
    "pool",
    "read_table",
    "relation",
    "spread",
    "tumour_features",
]
