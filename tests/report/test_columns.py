"""The container of the page's data: what goes in comes out, laid out as the page's script reads it."""

from __future__ import annotations

import gzip
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sae_tools.report.columns import DTYPES, decode, encode, narrow, pack, quantise, unpack

NAMES = st.text("abcdefghij_.", min_size=1, max_size=12)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(st.dictionaries(NAMES, ARRAYS, max_size=5), st.dictionaries(NAMES, st.dictionaries(NAMES, JSON), max_size=3))
def test_what_goes_in_comes_out(given_arrays, values):
    content = decode(encode(pack(given_arrays, values)))
    found, read = unpack(content)
    assert read == values and set(found) == set(given_arrays)
    for name, array in given_arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()  # NaNs too


@given(st.dictionaries(NAMES, ARRAYS, max_size=5), st.text(max_size=20))
def test_the_layout_is_the_documented_one(given_arrays, text):
    """Read with struct alone, as any other program would."""
    content = pack(given_arrays, {"panel": {"text": text}})
    (length,) = struct.unpack_from("<I", content)
    assert (4 + length) % 8 == 0
    header = json.loads(content[4 : 4 + length].decode("ascii"))
    assert header["json"] == {"panel": {"text": text}}
    codes = {"u1": "B", "u2": "H", "u4": "I", "i1": "b", "i2": "h", "i4": "i", "f4": "f", "f8": "d"}
    for name, array in given_arrays.items():
        entry = header["arrays"][name]
        assert entry["offset"] % 8 == 0 and entry["shape"] == list(array.shape)
        values = struct.unpack_from(f"<{array.size}{codes[entry['dtype']]}", content, 4 + length + entry["offset"])
        np.testing.assert_array_equal(np.array(values, array.dtype), array.reshape(-1))


def test_big_endian_and_strided_arrays_arrive_as_what_they_mean():
    array = np.arange(24, dtype=">u4").reshape(4, 6)[::2, ::3]
    found, _ = unpack(pack({"a": array}, {}))
    assert found["a"].tolist() == [[0, 3], [12, 15]]


def test_what_the_page_cannot_read_is_refused():
    for dtype in ("int64", "float16", "bool", "complex64"):
        with pytest.raises(ValueError, match="cannot read"):
            pack({"panel.x": np.zeros(3, dtype)}, {})


def test_numbers_that_json_lacks_become_null_and_text_is_ascii():
    content = pack({}, {"p": {"loss": [1.0, float("nan"), float("inf")], "token": "\ud800 é </script>"}})
    _, values = unpack(content)
    assert values["p"] == {"loss": [1.0, None, None], "token": "\ud800 é </script>"}
    assert content[4:].isascii()


def test_compressed_bytes_have_no_date():
    import base64

    content = base64.b64decode(encode(b"x" * 1000))
    assert content[:2] == b"\x1f\x8b" and content[4:8] == bytes(4)
    assert gzip.decompress(content) == b"x" * 1000  # by the standard library's own reader


@given(arrays.arrays("int64", 5, elements=st.integers(0, 2**32 - 1)))
def test_narrow_keeps_every_value_in_the_smallest_type(values):
    found = narrow(values)
    assert found.tolist() == values.tolist()
    largest = max(values.tolist())
    assert found.dtype.itemsize == (1 if largest < 256 else 2 if largest < 65536 else 4)
    assert narrow(np.zeros(0, np.int64)).dtype == np.uint8


@given(
    arrays.arrays("float32", 20, elements=st.floats(0, 100, width=32)),
    st.floats(100, 1000, width=32),
)
def test_quantised_activations_are_within_half_a_step_and_stay_above_zero(values, maximum):
    scale = np.full(20, maximum, np.float32)
    q = quantise(values, scale, 65535)
    assert q.dtype == np.uint16
    back = q.astype(np.float64) / 65535 * maximum
    allowed = np.where(q == 1, 1.0, 0.5001)  # the least that is not 0 also stands for what is less
    assert (np.abs(back - values) <= allowed * maximum / 65535).all()
    assert ((q > 0) == (values > 0)).all()


def test_quantised_effects_have_signs_and_a_scale_of_nothing_gives_zero():
    q = quantise(np.array([-2.0, 2.0, 1.0, -1e-9, 0.0]), np.full(5, 2.0), 32767)
    assert q.dtype == np.int16 and q.tolist() == [-32767, 32767, 16384, -1, 0]
    assert quantise(np.zeros(2), np.zeros(2), 32767).tolist() == [0, 0]
