"""Dictionary files that other programs write and read; one file per format."""

from sae_tools.dictionaries.formats.saelens import export_saelens, load_saelens, unfold

__all__ = ["export_saelens", "load_saelens", "unfold"]
