"""SAELens folders: `cfg.json` and `sae_weights.safetensors`.

`config.py` makes one thing of what versions of SAELens write into cfg.json, `read.py` a dictionary of a folder, and
`write.py` a folder that `sae_lens.SAE.load_from_disk` reads.
"""

from sae_tools.dictionaries.formats.folding import CHUNK, fold, unfold
from sae_tools.dictionaries.formats.saelens.config import CFG, METADATA, WEIGHTS
from sae_tools.dictionaries.formats.saelens.read import load_saelens
from sae_tools.dictionaries.formats.saelens.write import export_saelens, write_saelens

__all__ = ["CFG", "CHUNK", "METADATA", "WEIGHTS", "export_saelens", "fold", "load_saelens", "unfold", "write_saelens"]
