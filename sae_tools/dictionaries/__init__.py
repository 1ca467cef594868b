"""Dictionaries: the sparse autoencoders themselves.

`base.py` is what all share, `topk.py`, `batchtopk.py`, `matryoshka.py`, `relu.py`, `gated.py` and `jumprelu.py` the
architectures with their losses, `build.py` how one starts, `decoder.py` the unit-norm constraint, `sparse/` the
gradients that touch active features only, and `formats/` what others' programs read and write.
"""

from sae_tools.dictionaries.base import Codes, Coefficient, Dictionary, Pull, StepOutput
from sae_tools.dictionaries.batchtopk import BatchTopKDictionary
from sae_tools.dictionaries.build import build_dictionary
from sae_tools.dictionaries.decoder import normalise_decoder_, remove_parallel_gradient_
from sae_tools.dictionaries.gated import GatedDictionary
from sae_tools.dictionaries.jumprelu import JumpReLUDictionary
from sae_tools.dictionaries.matryoshka import MatryoshkaDictionary
from sae_tools.dictionaries.median import geometric_median
from sae_tools.dictionaries.relu import ReLUDictionary
from sae_tools.dictionaries.topk import TopKDictionary

__all__ = [
    "BatchTopKDictionary",
    "Codes",
    "Coefficient",
    "Dictionary",
    "GatedDictionary",
    "JumpReLUDictionary",
    "MatryoshkaDictionary",
    "Pull",
    "ReLUDictionary",
    "StepOutput",
    "TopKDictionary",
    "build_dictionary",
    "geometric_median",
    "normalise_decoder_",
    "remove_parallel_gradient_",
]
