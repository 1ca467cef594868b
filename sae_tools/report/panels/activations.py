"""How strongly a feature fires where it does."""

from __future__ import annotations

from typing import Any

from sae_tools.report.columns import narrow
from sae_tools.report.contents import Contents, DictionaryShown


def features(contents: Contents, shown: DictionaryShown, chunk: slice) -> dict[str, Any]:
    """`histogram` [n, 44]: tokens in even intervals of (0, `maximum`]."""
    return {"histogram": narrow(shown.arrays["histogram"][chunk]), "maximum": shown.arrays["maximum"][chunk]}
