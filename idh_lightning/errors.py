"""Every error that the package raises on purpose: where, what was found, what was expected, and the remedy."""


class IDHError(Exception):
    """Parent of all errors below; entry points print its message and exit with status 2, without a traceback."""


class ConfigError(IDHError, ValueError):
    """A setting is unknown, out of range, or contradicts another. Correct the named key or file and start again."""


class CohortError(IDHError, ValueError):
    """The table or the folders of a cohort are wrong: all faults are listed. Correct them or list studies to exclude."""


class VolumeError(IDHError, ValueError):
    """An image cannot be read or its geometry does not fit its study. Replace the file or exclude the study."""


class SplitError(IDHError, ValueError):
    """Patients cannot be split as asked: a patient in two parts, or a part with one class. Change the split settings."""


class ModelError(IDHError, ValueError):
    """The network cannot be built as asked: unknown module name, or weights that do not fit. Correct `model.*`."""


class ObjectiveError(IDHError, ValueError):
    """A loss was given a parameter out of range. Correct `objective.*`."""


class CheckpointError(IDHError, ValueError):
    """A checkpoint is missing, damaged or of another recipe. Give the path of a run folder or a `.ckpt` it wrote."""


class ExplanationError(IDHError, ValueError):
    """A class-activation map cannot be computed for this layer or study. Choose another `explain.layer`."""


class EvaluationError(IDHError, ValueError):
    """Predictions do not allow a statistic: one class, a missing split, a patient in two splits. The text says which."""
