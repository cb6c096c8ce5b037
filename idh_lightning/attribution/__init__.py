"""Methods of explanation: maps of what a network decided by, their scores, checks and comparison.

Throughout, `volumes` are [B, C, D, H, W], z-scores, left to right along W, 0 outside the brain; maps (`cam`) are
[D, H, W], >= 0, not yet cut to the brain, and `cams` one for each method by name; `mask`, `brain` and `masks` are
non-zero inside; `mean_tumour` is how often training studies have tumour in each voxel, or None. Networks are left as
they were.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # names: __init__.pyi
