"""What a model's licence asks to be handed on with everything that is made from it."""

import shutil
from pathlib import Path

from injection.files import read_text, write_text
from injection.profiles import Profile

NOTICE = "NOTICE"


def pass_on(source: Path, folder: Path, profile: Profile, change: str) -> None:
    """Copy the licence of source into folder and, where it asks for a notice, say what changed.

    The notice grows by a line with each step, from the first changed weights to the adapter.
    """
    for file in source.glob("LICENSE*"):
        shutil.copyfile(file, folder / file.name)
    if profile.licence is None:
        return
    earlier = f"{profile.licence}\n{profile.notice}\n"
    if (source / NOTICE).exists():
        earlier = read_text(source / NOTICE)
    write_text(folder / NOTICE, f"{earlier.rstrip()}\nChanged: {change}\n")
