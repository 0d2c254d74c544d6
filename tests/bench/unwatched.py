"""`falconet serve` that counts nothing: what `bench_observability` compares the real one with."""

import sys
from typing import Any

from service import cli, serve


class Nothing:
    """Stands for all metrics at once: whatever it is asked for or told, it does nothing."""

    def __getattr__(self, _name: str) -> Any:
        return self

    def __getitem__(self, _label: object) -> Any:
        return self

    def __call__(self, *_: object, **__: object) -> Any:
        return self


if __name__ == "__main__":
    serve.Metrics = Nothing  # type: ignore[assignment,misc]
    sys.exit(cli.main())
