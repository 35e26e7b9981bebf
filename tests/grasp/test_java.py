"""Set-up uses the same Java as Spark, and says what to do if it is unsuitable."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grasp.settings import ROOT


def fake_java(folder: Path, version: str) -> Path:
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}.0.1\"' >&2\n")
    program.chmod(0o755)
    return folder


def run_java(home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"GRASP_HOME": str(home), "PATH": "/nowhere", **variables}
    command = [sys.executable, str(ROOT / "requirements" / "java.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["17", "21"])
def test_a_suitable_java_home_is_used(tmp_path, version):
    result = run_java(tmp_path / "home", JAVA_HOME=str(fake_java(tmp_path / "jdk", version)))
    assert result.returncode == 0
    assert f"Java {version}" in result.stdout


def test_an_unsuitable_java_home_is_named_although_another_java_would_work(tmp_path):
    good, old = fake_java(tmp_path / "good", "17"), fake_java(tmp_path / "old", "11")
    path = f"{good / 'bin'}{os.pathsep}/usr/bin:/bin"
    result = run_java(tmp_path / "home", JAVA_HOME=str(old), PATH=path)
    assert result.returncode == 1
    assert f"JAVA_HOME={old} is no Java 17 or 21" in result.stderr


def test_a_downloaded_java_is_found_again(tmp_path):
    fake_java(tmp_path / "home" / "java", "17")
    assert "Java 17" in run_java(tmp_path / "home").stdout
