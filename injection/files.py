"""Files between stages: atomic writes, JSONL, hashes, and stamps that say what is up to date."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

import yaml

# A full disk, a quota, a limit on the size of a file.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOT = Path(__file__).resolve().parents[1]
# The same loader in C, ten times faster, where PyYAML was built with it.
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class InputError(Exception):
    """Bad input or state. The message is one line: what is wrong, where, what to do next."""


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main(); user errors become one line on stderr and exit code 1."""
    try:
        sys.exit(main() or 0)
    except InputError as error:
        sys.exit("error: " + " ".join(str(error).splitlines()))
    except KeyboardInterrupt:
        sys.exit("interrupted: run the same command again to go on")
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        sys.exit(f"error: no space left on disk ({error.filename or 'unknown file'}): free some")


def shown(path: Path) -> str:
    """The path as a person would type it from the repository root."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def require(path: Path, made_by: str) -> Path:
    """Return path if it exists, else raise InputError that names the step which makes it."""
    if not Path(path).exists():
        raise InputError(f"missing {shown(path)}: {made_by}")
    return Path(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace path in one step: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process = partial.suffixes[-2][1:]
        if process.isdecimal() and not is_running(int(process)):
            partial.unlink(missing_ok=True)  # of a process that was killed


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def owner(work: Path) -> int | None:
    """The process that works in this folder now.

    It holds a lock, which ends with it; its number alone may be another process's by now.
    """
    note = work / "process"
    if not note.exists():
        return None
    with open(note) as f:
        try:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(f.read() or 0)
    return None


def claim(work: Path) -> TextIO:
    """Note that this process works in this folder, for as long as the returned file is open.

    InputError while another one does.
    """
    work.mkdir(parents=True, exist_ok=True)
    note = open(work / "process", "a+")  # noqa: SIM115
    try:
        fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note.seek(0)
        number = note.read()
        raise InputError(
            f"process {number} is training {shown(work)}: wait for it or stop it"
        ) from None
    note.truncate(0)
    note.write(str(os.getpid()))
    note.flush()
    return note


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"missing {shown(path)}") from None
    except IsADirectoryError:
        raise InputError(f"{shown(path)} is a folder, a file is expected") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)} is not UTF-8 text (byte {error.start})") from None


def read_json(path: Path) -> dict:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{shown(path)} line {error.lineno}: not JSON ({error.msg})") from None


def read_jsonl(path: Path, keys: Iterable[str] = ()) -> list[dict]:
    """Rows of a JSONL file; every row must be an object that has the given keys."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{shown(path)} line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise InputError(f"{shown(path)} line {number}: expected an object")
        if missing := [k for k in keys if k not in row]:
            raise InputError(f"{shown(path)} line {number}: missing {', '.join(missing)}")
        rows.append(row)
    return rows


def refuse_repeated(path: Path, ids: Iterable[str]) -> None:
    """InputError when two rows of the file have one id."""
    repeated = [i for i, n in Counter(ids).items() if n > 1]
    if repeated:
        raise InputError(f"{shown(path)}: id {repeated[0]} occurs twice")


def read_yaml(path: Path) -> dict:
    try:
        value = yaml.load(read_text(path), SAFE_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise InputError(
            f"{shown(path)}{where}: not YAML ({getattr(error, 'problem', error)})"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{shown(path)}: expected a mapping")
    return value


@contextlib.contextmanager
def staged_folder(path: Path, resume: bool = False) -> Iterator[Path]:
    """Yield a folder beside path that takes path's place only if the block succeeds.

    With resume, what a failed or killed run left in it is still there; the caller has to check it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.partial")
    old = path.with_name(f".{path.name}.old.partial")
    # A run killed between the two renames below left the good copy under the old name.
    if old.exists() and not path.exists():
        os.replace(old, path)
    if not resume:
        shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(exist_ok=resume)
    try:
        yield staging
        for file in staging.rglob("*"):
            if file.is_file():
                with open(file, "rb") as f:
                    os.fsync(f.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(staging, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if not resume:
            shutil.rmtree(staging, ignore_errors=True)


def require_space(target: Path, needed: float) -> None:
    """InputError unless `needed` bytes fit on the disk of target, which need not exist yet."""
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise InputError(
            f"{free / 1e9:.2f} GB free for {shown(target)}, {needed / 1e9:.2f} GB needed: "
            "free some space"
        )


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def model_fingerprint(folder: Path) -> str:
    """Identity of a model folder: config, tokenizer, and samples of every weight file.

    64 blocks of 64 KiB per file are read, so that 5 GB of weights cost milliseconds.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        digest.update((folder / name).read_bytes() if (folder / name).exists() else b"")
    for file in sorted(folder.glob("[!.]*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as f:
            for block in range(64):
                f.seek(size * block // 64)
                digest.update(f.read(65536))
    return digest.hexdigest()


def inputs(settings: dict, *paths: Path) -> dict:
    """What an output depends on: settings, the content of files, the identity of model folders."""
    hashes = {}
    for path in paths:
        if path.is_dir():
            hashes[shown(path)] = model_fingerprint(path)
        else:
            hashes[shown(path)] = sha256(path) if path.exists() else None
    # Through JSON, so that it compares equal to what a stamp file gives back.
    return json.loads(json.dumps({"settings": settings, "inputs": hashes}))


def _stamp(output: Path) -> Path:
    return output.with_name(f".{output.name}.stamp.json")


def is_current(output: Path, made_from: dict) -> bool:
    """True when output exists, is unchanged since it was stamped, and was made from the same."""
    stamp = _stamp(output)
    if not output.exists() or not stamp.exists():
        return False
    recorded = json.loads(stamp.read_text())
    return recorded == {"made_from": made_from, "output": _identity(output)}


def mark_current(output: Path, made_from: dict) -> None:
    """Record what output was made from; the last act of a step."""
    write_json(_stamp(output), {"made_from": made_from, "output": _identity(output)})


def forget(output: Path) -> None:
    """Let output count as unfinished, whatever it was made from."""
    _stamp(output).unlink(missing_ok=True)


def _identity(output: Path) -> str:
    if output.is_file():
        return sha256(output)
    weights = model_fingerprint(output)
    names = sorted(str(f.relative_to(output)) for f in output.rglob("*") if f.is_file())
    # Hidden files are not ours: Finder and its like leave them in the folders they show.
    ours = [name for name in names if "/." not in f"/{name}"]
    return hashlib.sha256("\n".join([weights, *ours]).encode()).hexdigest()
