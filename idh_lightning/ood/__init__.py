"""Out-of-distribution detection: is a study like the training ones?"""

from idh_lightning.ood.descriptor import StudyDescriptor, study_descriptor, volume_descriptor
from idh_lightning.ood.detector import MahalanobisModel, OODWarning, OutOfDistributionDetector
from idh_lightning.ood.fit import fit_ood_detector

__all__ = [
    "MahalanobisModel",
    "OODWarning",
    "OutOfDistributionDetector",
    "StudyDescriptor",
    "fit_ood_detector",
    "study_descriptor",
    "volume_descriptor",
]
