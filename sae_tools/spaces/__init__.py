"""Spaces: the coordinates and the metric in which a dictionary reconstructs.

`space.py` is the affine map itself, `build.py` estimates one from a job's settings and a sample of rows, `root.py` has
the metric of the logits, and `maps.py` carries reconstructions forward to the spaces in which they are compared.
"""

from sae_tools.spaces.build import build_space, check_space
from sae_tools.spaces.maps import forward_chain, site_chain
from sae_tools.spaces.root import Root, gram, logit_root, root_of
from sae_tools.spaces.space import Space

__all__ = [
    "Root",
    "Space",
    "build_space",
    "check_space",
    "forward_chain",
    "gram",
    "logit_root",
    "root_of",
    "site_chain",
]
