"""The one clock that compiled code reads: how long the model took of a call that does the features as well.

It feeds a metric and nothing else; no score depends on it.
"""

import time
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_build: Any = cgutils


def _clock(_typing_context: Any) -> Any:
    """Call the C library: a pointer to its function, as ctypes gives, would keep the kernel out of the disk cache."""

    def generate(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        word, pair = ir.IntType(64), ir.ArrayType(ir.IntType(64), 2)
        call = ir.FunctionType(ir.IntType(32), [ir.IntType(32), pair.as_pointer()])
        function = _build.get_or_insert_function(builder.module, call, "clock_gettime")
        spec = _build.alloca_once(builder, pair)
        builder.call(function, [ir.Constant(ir.IntType(32), time.CLOCK_MONOTONIC), spec])
        seconds, rest = (builder.extract_value(builder.load(spec), i) for i in (0, 1))
        return builder.add(builder.mul(seconds, ir.Constant(word, 1_000_000_000)), rest)

    return types.int64(), generate


monotonic_ns: Any = intrinsic(_clock)
"""The clock of `time.monotonic_ns` from within a kernel that does the work of two stages; some 20 ns a call."""
