"""The image's steps, run without Docker: in a tree that begins empty but for the system's programs and Python.

    python -m tests.image       # as root on Linux; two minutes, most of it installing

Each `RUN` happens in a mount namespace of its own, chrooted, with the system's folders read-only; `apt-get` only tells
whether it would install. At the end the root is made read-only, and the entry point runs as the image's user.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"

SYSTEM = ("usr", "bin", "sbin", "lib", "lib64")
RUN_SECONDS = 600.0

PROBE = "check"
"""What the container is started with at the end, beside --offline: it loads settings, model and kernels."""

_NAMESPACE = """
set -eu
root=$1; prefix=$2; volumes=$3; user=$4; folder=$5; shift 5
for each in usr bin sbin lib lib64; do
    if [ -d "/$each" ]; then mount --rbind "/$each" "$root/$each"; mount -o remount,bind,ro "$root/$each"; fi
done
mount --bind "$prefix" "$root/usr/local"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
if [ -n "$volumes" ]; then
    mount --bind "$root" "$root.ro"; mount -o remount,bind,ro "$root.ro"
    for each in usr bin sbin lib lib64 dev proc; do
        if mountpoint -q "$root/$each"; then mount --rbind "$root/$each" "$root.ro/$each"; fi
    done
    for each in $volumes; do mount -t tmpfs tmpfs "$root.ro$each"; chown "$user" "$root.ro$each"; done
    root=$root.ro
fi
cd "$root"
exec chroot --userspec="$user" "$root" /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$folder" "$@"
"""


class Stage(NamedTuple):
    """What stands between one FROM and the next."""

    base: str
    name: str
    steps: list[tuple[str, str]]
    """Instruction and arguments, lines joined."""

    def copied(self) -> list[str]:
        """Return what is copied from the context."""
        words = [text.split() for step, text in self.steps if step == "COPY"]
        return [source for each in words if not each[0].startswith("--from=") for source in each[:-1]]

    def last(self, step: str) -> str:
        """Return the arguments of the last instruction of a kind."""
        return [text for name, text in self.steps if name == step][-1]


def stages() -> list[Stage]:
    """Return the stages of the image in order.

    Raises:
        ValueError: A line is no instruction that the rehearsal knows.
    """
    known = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER", "VOLUME"}
    text = re.sub(r"^\s*#[^\n]*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        step, _, rest = line.partition(" ")
        if step == "FROM":
            words = expanded(rest, arguments).split()
            found.append(Stage(words[0], words[2] if len(words) > 2 else "", []))
        elif step == "ARG" and not found:
            arguments.update([rest.split("=", 1)])
        elif step in known | {"WORKDIR"}:
            found[-1].steps.append((step, rest.strip()))
        else:
            raise ValueError(f"{DOCKERFILE}: {step} is no instruction that is rehearsed")
    return found


def expanded(text: str, values: dict[str, str]) -> str:
    """Return a text with its variables put in.

    >>> expanded("a=${b}:$PATH", {"b": "1", "PATH": "/bin"})
    'a=1:/bin'
    """
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda name: values[name[1] or name[2]], text)


class Rehearsal:
    """One stage as it grows in a folder."""

    def __init__(self, root: Path, done: dict[str, Path]) -> None:
        """Make the tree that the base image stands for: folders, a copy of /etc, and the system's programs."""
        self.root, self._done = root, done
        self.environment = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"}
        self._environment = {n: v for n, v in os.environ.items() if n.startswith(("PIP_", "SSL_", "REQUESTS_"))}
        # Python was built for another prefix, where its library would be looked for.
        self._environment["LD_LIBRARY_PATH"] = "/usr/local/lib"
        self.folder, self.user, self.volumes = "/", "0:0", list[str]()
        for name in (
            *SYSTEM,
            "dev",
            "proc",
            "tmp",
            "root",
            "run",
            "opt",
            "var/lib/apt/lists/partial",
            "var/lib/dpkg",
            "rehearsal",
        ):
            (root / name).mkdir(parents=True, exist_ok=True)
        root.with_name(root.name + ".ro").mkdir()
        (root / "tmp").chmod(0o1777)
        shutil.copytree("/etc", root / "etc", symlinks=True)
        settings = Path.home() / ".config" / "pip"
        if settings.is_dir():
            shutil.copytree(settings, root / "root" / ".config" / "pip")
        (root / "var/cache/apt/archives/partial").mkdir(parents=True)
        # As if nothing were installed: all that a package needs must be there to be had.
        (root / "var/lib/dpkg/status").touch()
        shim = root / "rehearsal" / "apt-get"
        update = '[ "$1" = update ] && exec /usr/bin/apt-get -qq update'
        shim.write_text(f'#!/bin/sh\n{update}\nexec /usr/bin/apt-get --simulate "$@" > /dev/null\n')
        shim.chmod(0o755)

    def take(self, step: str, text: str) -> None:
        """Follow one instruction.

        Raises:
            subprocess.CalledProcessError: A RUN failed.
        """
        if step == "RUN":
            self.run(["sh", "-ec", text])
        elif step == "COPY":
            self._copy(shlex.split(text))
        elif step == "WORKDIR":
            self.folder = text
            (self.root / text[1:]).mkdir(parents=True, exist_ok=True)
        elif step in {"ENV", "ARG"}:
            for pair in shlex.split(text):
                name, _, value = pair.partition("=")
                self.environment[name] = expanded(value, self.environment)
        elif step == "USER":
            self.user = text
        elif step == "VOLUME":
            self.volumes = json.loads(text)

    def _copy(self, words: list[str]) -> None:
        origin = self._done[words.pop(0).removeprefix("--from=")] if words[0].startswith("--from=") else ROOT
        *sources, target = words
        for source in sources:
            place = self.root / (target[1:] if target.startswith("/") else f"{self.folder[1:]}/{target}")
            found = origin / source.lstrip("/")
            if found.is_dir():
                shutil.copytree(found, place, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place = place / found.name if target.endswith("/") else place
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, place)

    def run(self, command: Sequence[str], *, is_final: bool = False) -> str:
        """Run a command in the tree, and return what it wrote."""
        volumes = " ".join([*self.volumes, "/tmp"]) if is_final else ""
        path = self.environment["PATH"]
        environment = {**self._environment, **self.environment, "PATH": f"/rehearsal:{path}"}
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", _NAMESPACE, "sh", str(self.root), sys.base_prefix, volumes, self.user,
             self.folder, "env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command],
            stdout=subprocess.PIPE, text=True, timeout=RUN_SECONDS, check=True,
        )  # fmt: skip
        return done.stdout


def rehearse(work: Path) -> str:
    """Run every step of the image below an empty folder, then its entry point; return what that wrote."""
    done: dict[str, Path] = {}
    last: Rehearsal | None = None
    for n, stage in enumerate(stages()):
        root = work / f"stage{n}"
        last = Rehearsal(root, done)
        for step, text in stage.steps:
            print(f"{stage.name or 'final'}: {step} {text[:100]}", flush=True)
            last.take(step, text)
        done[stage.name] = root
    assert last is not None
    entry = json.loads(stages()[-1].last("ENTRYPOINT"))
    # What was compiled again stands beside what the image brought.
    compare = 'diff -r -q /opt/falconet/kernels "$NUMBA_CACHE_DIR" && ! touch /opt/written 2> /dev/null && id -u'
    return last.run(["sh", "-c", f"{shlex.join(entry)} {PROBE} --offline && {compare}"], is_final=True)


def main() -> None:
    """Rehearse and say how it ended."""
    with tempfile.TemporaryDirectory(prefix="falconet-image-") as work:
        print(rehearse(Path(work)))


if __name__ == "__main__":
    main()
