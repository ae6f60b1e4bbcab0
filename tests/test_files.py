"""Files between stages survive kills, failures and full disks, and know what is up to date."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from support import ROOT

from injection import files


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".a.json.{gone.pid}.partial"
    others = [tmp_path / f".a.json.{os.getppid()}.partial", tmp_path / ".a.json.old.partial"]
    for file in (left, *others):
        file.write_text("half")
    files.write_json(tmp_path / "a.json", {})
    assert not left.exists() and all(file.exists() for file in others)


def test_failed_write_keeps_the_old_content_and_no_rubbish(tmp_path):
    target = tmp_path / "a.json"
    files.write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]


def test_staged_folder_replaces_only_on_success(tmp_path):
    folder = tmp_path / "model"
    with files.staged_folder(folder) as staging:
        (staging / "weights").write_text("old")
    with pytest.raises(RuntimeError), files.staged_folder(folder) as staging:
        (staging / "weights").write_text("half")
        raise RuntimeError
    assert (folder / "weights").read_text() == "old"
    with files.staged_folder(folder) as staging:
        (staging / "other").write_text("new")
    assert [f.name for f in folder.iterdir()] == ["other"]
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_staged_folder_that_resumes_keeps_what_a_failed_run_left(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(RuntimeError), files.staged_folder(folder, resume=True) as staging:
        (staging / "first").write_text("1")
        raise RuntimeError
    assert not folder.exists()
    with files.staged_folder(folder, resume=True) as staging:
        (staging / "second").write_text("2")
    assert sorted(f.name for f in folder.iterdir()) == ["first", "second"]
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_staged_folder_recovers_from_a_kill_between_its_renames(tmp_path):
    folder = tmp_path / "model"
    code = (
        "import os, sys, signal; from pathlib import Path; from injection import files\n"
        "replace = os.replace\n"
        "def killed_after_first(a, b):\n"
        "    replace(a, b); os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = killed_after_first\n"
        "with files.staged_folder(Path(sys.argv[1])) as staging:\n"
        "    (staging / 'weights').write_text('new')\n"
    )
    folder.mkdir()
    (folder / "weights").write_text("old")
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and not folder.exists()
    with pytest.raises(RuntimeError), files.staged_folder(folder):
        raise RuntimeError
    assert (folder / "weights").read_text() == "old"


def test_is_current_only_when_nothing_changed(tmp_path):
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("a")
    output.write_text("result")

    def current(settings):
        return files.is_current(output, files.inputs(settings, source))

    assert not current({"n": 1}), "never stamped"
    files.mark_current(output, files.inputs({"n": 1}, source))
    assert current({"n": 1})
    assert not current({"n": 2}), "other settings"
    source.write_text("b")
    assert not current({"n": 1}), "other input"
    source.write_text("a")
    assert current({"n": 1}), "same content again"
    output.write_text("edited")
    assert not current({"n": 1}), "output edited"
    output.unlink()
    assert not current({"n": 1}), "output deleted"


def test_is_current_of_a_folder_sees_a_missing_file(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)
    files.mark_current(folder, {"a": 1})
    assert files.is_current(folder, {"a": 1})
    (folder / "model.safetensors").write_text("model_safetensors")
    assert not files.is_current(folder, {"a": 1}), "weights edited"
    (folder / "model.safetensors").write_text("model.safetensors")
    assert files.is_current(folder, {"a": 1})
    (folder / "model.safetensors").unlink()
    assert not files.is_current(folder, {"a": 1}), "weights deleted"


def test_hidden_files_make_no_folder_stale(tmp_path):
    """Finder leaves .DS_Store behind, and ._NAME on disks that are not a Mac's own."""
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    files.mark_current(folder, files.inputs({}, folder))
    for name in (".DS_Store", "._model.safetensors", "part/.DS_Store"):
        (folder / name).write_text("rubbish")
    assert files.is_current(folder, files.inputs({}, folder))
    (folder / "part/seen").write_text("x")
    assert not files.is_current(folder, files.inputs({}, folder))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"id": 1}\n{"id": \n', "line 2: not JSON"),
        ('{"id": 1}\n\n\n[1]\n', "line 4: expected an object"),
        ('{"id": 1}\n{"no": 1}\n', "line 2: missing id"),
    ],
)
def test_read_jsonl_names_file_and_line(tmp_path, content, complaint):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(files.InputError, match=complaint) as error:
        files.read_jsonl(path, keys=("id",))
    assert str(path) in str(error.value)


def test_read_jsonl_refuses_missing_and_binary_files(tmp_path):
    with pytest.raises(files.InputError, match="missing .*none.jsonl"):
        files.read_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "bytes").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(files.InputError, match="not UTF-8 text .byte 7"):
        files.read_jsonl(tmp_path / "bytes")


@pytest.mark.parametrize(
    "text",
    [
        '한국어 "quoted" \\ \t 😀',
        pytest.param("line\u2028separator\u0085and next line"),
    ],
)
def test_jsonl_round_trip(tmp_path, text):
    files.write_jsonl(tmp_path / "rows.jsonl", [{"text": text}, {"text": "b"}])
    assert files.read_jsonl(tmp_path / "rows.jsonl") == [{"text": text}, {"text": "b"}]


def test_read_yaml_names_the_line(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1\nb: [1,\n")
    with pytest.raises(files.InputError, match="a.yaml line 3: not YAML"):
        files.read_yaml(tmp_path / "a.yaml")


def test_full_disk_is_one_line(tmp_path):
    """A write to /dev/full, through the same run() that wraps every script."""
    code = (
        "from pathlib import Path; from injection import files\n"
        "def main():\n"
        "    with open('/dev/full', 'wb', buffering=0) as f:\n"
        "        f.write(b'x')\n"
        "files.run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "no space left on disk" in done.stderr


def write_beyond_limit(target, on_limit: str) -> subprocess.CompletedProcess:
    """A process writes 5000 bytes and may write 1000: SIGXFSZ comes in the middle."""

    def limit():
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    code = (
        "import signal, sys; from pathlib import Path; from injection import files\n"
        f"signal.signal(signal.SIGXFSZ, signal.{on_limit})\n"
        "files.write_text(Path(sys.argv[1]), 'x' * 5000)\n"
    )
    command = [sys.executable, "-B", "-c", code, str(target)]
    return subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True)


def test_write_that_hits_a_size_limit_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    files.write_text(target, "old")
    done = write_beyond_limit(target, "SIG_IGN")
    assert done.returncode and "File too large" in done.stderr
    assert target.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]


def test_kill_in_the_middle_of_a_write_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    files.write_text(target, "old")
    done = write_beyond_limit(target, "SIG_DFL")
    assert done.returncode == -signal.SIGXFSZ, done.stderr
    assert target.read_text() == "old"
    (partial,) = tmp_path.glob(".*")
    assert partial.stat().st_size == 1000, "it was killed while it wrote"
    with open(target) as reader:
        files.write_text(target, "new")
        assert reader.read() == "old", "the new file takes its place, nothing is written into it"
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        ("files.InputError('bad thing: do this')", "error: bad thing: do this\n"),
        ("KeyboardInterrupt", "interrupted: run the same command again to go on\n"),
    ],
)
def test_run_prints_one_line(raised, line):
    code = f"from injection import files\ndef main():\n    raise {raised}\nfiles.run(main)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, line)
