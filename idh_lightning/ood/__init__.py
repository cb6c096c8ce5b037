"""Out-of-distribution detection: is a study like the training ones?"""

from idh_lightning.ood.descriptor import StudyDescriptor, study_descriptor, volume_descriptor
from idh_lightning.ood.detector import OODWarning, OutOfDistributionDetector, fit_ood_detector

__all__ = [
    "OODWarning",
    "OutOfDistributionDetector",
    "StudyDescriptor",
    "fit_ood_detector",
    "study_descriptor",
    "volume_descriptor",
]
