"""A NIfTI file on disk -> an image with its geometry, or a fault that names the file."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from idh_lightning.volumes.checks import FaultyStudyError, Place

MOST_SURPLUS_BYTES = 2**24
"""Of a file before and after its voxels: a small compressed file can unpack to any length."""

# NIfTI's x and y point to Right and Anterior, those of SimpleITK and DICOM to Left and Posterior.
RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an image are, in SimpleITK's terms: axes x, y, z in the order of the file, LPS mm.

    Attributes:
        size: Voxels along x, y, z; the array is [z, y, x].
        spacing_mm: Voxel edges along x, y, z.
        origin_mm: Centre of the first voxel.
        direction: The 3 x 3 matrix of the axes, row by row.
    """

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Geometry:
        """Return the geometry of a SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_affine(cls, size: tuple[int, int, int], affine: NDArray[np.float64]) -> Geometry:
        """Return the geometry of a grid whose LPS affine [4, 4] is given."""
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        direction = affine[:3, :3] / spacing
        edges, origin = (cast(tuple[float, float, float], tuple(part.tolist())) for part in (spacing, affine[:3, 3]))
        return cls(size, edges, origin, tuple(direction.ravel().tolist()))

    @property
    def affine(self) -> NDArray[np.float64]:
        """[4, 4], voxel indices (x, y, z) to LPS mm."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(self.direction, (3, 3)) * self.spacing_mm
        affine[:3, 3] = self.origin_mm
        return affine

    @property
    def inverse(self) -> NDArray[np.float64]:
        """[4, 4], LPS mm to voxel indices (x, y, z)."""
        return np.asarray(np.linalg.inv(self.affine), dtype=np.float64)

    @property
    def affine_ras(self) -> NDArray[np.float64]:
        """[4, 4], voxel indices (x, y, z) to RAS mm, as in a NIfTI header."""
        return RAS_LPS @ self.affine

    def image(self, voxels: NDArray[Any]) -> sitk.Image:
        """Return voxels [z, y, x] as a SimpleITK image with this geometry."""
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(self.spacing_mm)
        image.SetOrigin(self.origin_mm)
        image.SetDirection(self.direction)
        return image

    def resampled(
        self, image: sitk.Image, method: int, move: sitk.Transform | None = None, outside: float = 0.0
    ) -> NDArray[Any]:
        """Voxels [z, y, x] of another image on this grid, `outside` where it ends; `method` is one of SimpleITK's.

        `move` takes LPS mm of this grid to those of the image; by default both are the same.
        """
        grid = (self.size, move or sitk.Transform(), method, self.origin_mm, self.spacing_mm, self.direction, outside)
        return np.asarray(sitk.GetArrayFromImage(sitk.Resample(image, *grid)))

    def agrees_with(self, other: Geometry) -> bool:
        """Whether both grids have the same voxels, to a hundredth of a millimetre."""
        return self.size == other.size and bool(np.allclose(self.affine, other.affine, rtol=0, atol=1e-2))


def read_header(path: Path, place: Place) -> nib.Nifti1Image:
    """Return a NIfTI image of which only the header has been read.

    Raises:
        FaultyStudyError: If there is no such file or it does not begin as a NIfTI file.
    """
    if not path.is_file():
        remedy = "Correct the path, or leave the sequence out of the table."
        raise FaultyStudyError([place.fault("missing_file", f"there is no file {path}", "a NIfTI file", remedy)])
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        found = f"{path} is not named as a NIfTI file"
        raise FaultyStudyError(
            [place.fault("unreadable_file", found, "a name ending in .nii or .nii.gz", "Convert it.")]
        )
    try:
        image = nib.load(path)
        image.affine  # noqa: B018 - some damaged headers fail only here
    except (ImageFileError, HeaderDataError, *_DECODING_ERRORS) as error:
        raise _unreadable(place, "the header cannot be read", error) from error
    return image


def read_voxels(path: Path, header: nib.Nifti1Image, place: Place) -> sitk.Image:
    """Return the image of a checked header, float32, in the orientation of the file.

    The file is decoded here rather than by SimpleITK, whose reader returns a truncated file as an image with zeros
    (2.5.7, compressed or not); going through the whole stream also verifies the checksum that gzip appends.

    Raises:
        FaultyStudyError: If the file ends early or its compressed stream is damaged.
    """
    stored = header.get_data_dtype()
    offset = int(header.dataobj.offset)
    length = offset + int(np.prod(header.shape, dtype=np.int64)) * stored.itemsize
    try:
        if offset > MOST_SURPLUS_BYTES:
            raise ValueError(f"the header says that the voxels begin at byte {offset}")
        opened: Any = igzip.open if path.suffix.lower() == ".gz" else Path.open
        with cast(IO[bytes], opened(path, "rb")) as file:
            content = file.read(length)
            surplus = 0
            while more := len(file.read(1 << 20)):
                surplus += more
                if surplus > MOST_SURPLUS_BYTES:
                    raise ValueError(f"more than {surplus >> 20} MiB follow the {length} bytes that the header states")
        if len(content) < length:
            raise EOFError(f"{len(content)} of {length} bytes are there")
        voxels = np.asarray(type(header).from_bytes(content).dataobj, dtype=np.float32)
    except (ImageFileError, *_DECODING_ERRORS) as error:
        raise _unreadable(place, "the file is truncated or damaged", error) from error
    voxels = voxels.reshape(voxels.shape[:3], order="A")
    return header_geometry(header).image(np.ascontiguousarray(voxels.T))


def header_geometry(header: nib.Nifti1Image) -> Geometry:
    """Return the geometry that a checked header states (its sform, or its qform where there is no sform)."""
    size = cast(tuple[int, int, int], tuple(int(n) for n in header.shape[:3]))
    return Geometry.from_affine(size, RAS_LPS @ np.asarray(header.affine, dtype=np.float64))


def fingerprint(voxels: NDArray[np.float32]) -> str:
    """Return a hash of an oriented volume [D, H, W] that does not depend on file names, compression or headers."""
    digest = hashlib.sha256(repr(voxels.shape).encode())
    digest.update(np.ascontiguousarray(voxels).data)
    return digest.hexdigest()


_IGZIP_ERROR: Any = isal_zlib.error  # typed as an exception, not as a class of them
_DECODING_ERRORS: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, OverflowError, zlib.error, _IGZIP_ERROR)


def _unreadable(place: Place, found: str, error: Exception) -> FaultyStudyError:
    text = " ".join(str(error).split()) or type(error).__name__
    remedy = "Copy or convert the file again, or exclude the study."
    return FaultyStudyError([place.fault("unreadable_file", f"{found} ({text})", "a complete NIfTI file", remedy)])
