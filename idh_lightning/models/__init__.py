"""The network: a timm_3d EfficientNet cut into a frozen stem and a trainable tail, and the origin of its weights."""

from idh_lightning.models.batch_norm import calibrate_batch_norm
from idh_lightning.models.memory import TrainingMemory, segmentation_memory, training_memory
from idh_lightning.models.network import NetworkOutput, StemTailNetwork, TailInput
from idh_lightning.models.voting import VotingNetwork, tumour_probability
from idh_lightning.models.weights import LATER, WeightsOrigin, inflate, load_weights

__all__ = [
    "LATER",
    "NetworkOutput",
    "StemTailNetwork",
    "TailInput",
    "TrainingMemory",
    "VotingNetwork",
    "WeightsOrigin",
    "calibrate_batch_norm",
    "inflate",
    "load_weights",
    "segmentation_memory",
    "training_memory",
    "tumour_probability",
]
