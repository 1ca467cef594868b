"""Dictionary files that other programs write and read.

`read.py` reads whatever a path or a name means, `local.py` tells formats on the disk apart, `hub.py` fetches and
`write.py` writes. `saelens/`, `dictionary_learning.py` and `sparsify.py` are the formats, `releases/` the layouts of
published dictionaries, which are read only; `support.py` says which architecture exists where. `parts.py` takes
dictionaries apart, `folding.py` moves them between coordinates, `units.py` says what an activation is; `files.py`,
`torch_file.py` and `npz.py` read what nobody vouches for.
"""

from sae_tools.dictionaries.formats.folding import unfold
from sae_tools.dictionaries.formats.read import load_dictionary, read_dictionary
from sae_tools.dictionaries.formats.saelens import export_saelens, load_saelens
from sae_tools.dictionaries.formats.write import save_dictionary, write_dictionary

__all__ = [
    "export_saelens",
    "load_dictionary",
    "load_saelens",
    "read_dictionary",
    "save_dictionary",
    "unfold",
    "write_dictionary",
]
