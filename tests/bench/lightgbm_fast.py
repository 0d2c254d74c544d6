"""LightGBM's fastest way for one row: its C single-row-fast call through ctypes, which its package leaves out."""

import ctypes
from pathlib import Path

import lightgbm
import numpy as np
from numpy.typing import NDArray

RAW_SCORE, FLOAT64 = 1, 1
"""C_API_PREDICT_RAW_SCORE and C_API_DTYPE_FLOAT64 of LightGBM's c_api.h. Its trees compare doubles: a float32 row
would be converted by the call."""


class FastCall:
    """One booster ready for single rows: no threads, no allocation, the row copied into a buffer of its own."""

    def __init__(self, booster: lightgbm.Booster) -> None:
        # The booster is kept: its handle dies with it.
        self._booster = booster
        self._library = ctypes.CDLL(str(next((Path(lightgbm.__file__).parent / "lib").glob("lib_lightgbm.*"))))
        self._library.LGBM_GetLastError.restype = ctypes.c_char_p
        self._row = np.zeros(booster.num_feature())
        self._margin, self._n_out = ctypes.c_double(), ctypes.c_int64()
        self._config = ctypes.c_void_p()
        failed = self._library.LGBM_BoosterPredictForMatSingleRowFastInit(
            booster._handle,
            ctypes.c_int(RAW_SCORE),
            ctypes.c_int(0),
            ctypes.c_int(-1),
            ctypes.c_int(FLOAT64),
            ctypes.c_int32(len(self._row)),
            ctypes.c_char_p(b"num_threads=1"),
            ctypes.byref(self._config),
        )
        if failed:
            raise RuntimeError(self._library.LGBM_GetLastError().decode())
        # Built once: making these objects took longer than the call for a small model.
        self._call = self._library.LGBM_BoosterPredictForMatSingleRowFast
        self._arguments = (
            self._config,
            ctypes.c_void_p(self._row.ctypes.data),
            ctypes.byref(self._n_out),
            ctypes.byref(self._margin),
        )

    def __call__(self, row: NDArray[np.float64]) -> float:
        """Return a row's log-odds before calibration."""
        self._row[:] = row
        if self._call(*self._arguments):
            raise RuntimeError(self._library.LGBM_GetLastError().decode())
        return self._margin.value

    def rows(self, rows: NDArray[np.float64]) -> list[float]:
        """Return rows' log-odds before calibration, by one call each."""
        return [self(row) for row in rows]

    def close(self) -> None:
        """Free what LightGBM holds for the calls."""
        self._library.LGBM_FastConfigFree(self._config)
