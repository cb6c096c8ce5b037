"""Volumes for the network: images read, checked, brought to one grid, and kept on disk."""

from idh_lightning.volumes.checks import FaultyStudyError
from idh_lightning.volumes.entries import StoredVolume
from idh_lightning.volumes.mapping import (
    codes_on_grid,
    mask_in_patient_space,
    to_patient_space,
    write_in_patient_space,
    write_map,
)
from idh_lightning.volumes.preprocessing import Preprocessing, Volume
from idh_lightning.volumes.reading import Geometry
from idh_lightning.volumes.store import PrepareReport, VolumeStore

__all__ = [
    "FaultyStudyError",
    "Geometry",
    "PrepareReport",
    "Preprocessing",
    "StoredVolume",
    "Volume",
    "VolumeStore",
    "codes_on_grid",
    "mask_in_patient_space",
    "to_patient_space",
    "write_in_patient_space",
    "write_map",
]
