#!/bin/sh
# The compiled kernels lie in the image, and their folder must be writable (docs/operations.md): a root file system that
# is read-only has them copied to the memory that is mounted at NUMBA_CACHE_DIR, 4 MB.
set -eu
cp -R -u -p /opt/falconet/kernels/. "$NUMBA_CACHE_DIR"/
exec falconet "$@"
