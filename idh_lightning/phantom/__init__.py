"""Synthetic gliomas: brains, tumours and signs that are known exactly, written in the layout of UCSF-PDGM."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # names: __init__.pyi
