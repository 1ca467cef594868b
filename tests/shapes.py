"""Checks jaxtyping's annotations while tests run: every tensor that goes into or out of a function of ours.

Only tensors are checked, alone, in `| None` or in tuples; other annotations are pyright's business.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import numpy as np
import torch
from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, raising TypeError for a tensor whose dtype or shape is not the annotated one.

    Within one call a dimension's name has one size; jaxtyping keeps count of that.
    """
    signature = inspect.signature(function)
    hints = {name: p.annotation for name, p in signature.parameters.items() if has_tensors(p.annotation)}
    returned = signature.return_annotation if has_tensors(signature.return_annotation) else None

    if not hints and returned is None:
        return function

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name, hint in hints.items():
            if name in given and not fits(given[name], hint):
                raise TypeError(f"{name}: expected {hint}, found {described(given[name])}")
        result = function(*args, **kwargs)
        if returned is not None and not fits(result, returned):
            raise TypeError(f"returned: expected {returned}, found {described(result)}")
        return result

    return wrapper


def has_tensors(hint: Any) -> bool:
    return is_tensor(hint) or any(has_tensors(part) for part in get_args(hint))


def is_tensor(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, AbstractArray)


def fits(value: Any, hint: Any) -> bool:
    if is_tensor(hint):  # what is no array at all is a test's stand-in
        return isinstance(value, hint) or not isinstance(value, (torch.Tensor, np.ndarray))
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if hint is None or hint is type(None):
        return value is None
    if not has_tensors(hint):
        return not inspect.isclass(hint) or isinstance(value, hint)
    if origin is tuple and isinstance(value, tuple):
        if len(parts) == 2 and parts[1] is Ellipsis:
            return all(fits(part, parts[0]) for part in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    return True  # the tensors of a list or dict may differ in the very dimension that the hint names


def described(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(described(part) for part in value)})"
    return type(value).__name__
