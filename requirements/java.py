"""Find a Java 17 or 21 for Spark; without one, fetch a JRE below GRASP_HOME, else say what to install."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

VERSIONS = ("17", "21")


def java_version(java: str) -> str | None:
    """Major version that this `java` reports, or None when it does not run."""
    try:
        shown = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r'version "(\d+)', shown)
    return found.group(1) if found else None


def candidates(home: Path) -> list[str]:
    """The Javas to look at: JAVA_HOME alone when it is set, since Spark takes it, else the PATH and one fetched."""
    if os.environ.get("JAVA_HOME"):
        return [f"{os.environ['JAVA_HOME']}/bin/java"]
    return [place for place in (shutil.which("java"), str(home / "java" / "bin" / "java")) if place]


def fetch_jre(home: Path) -> None:
    """Install a JRE 17 (about 45 MB to download) below `home` and link it as `home/java`."""
    import jdk

    print("[grasp] no Java 17 or 21 found: fetching a JRE 17, about 45 MB", flush=True)
    folder = jdk.install("17", jre=True, path=str(home / "jre"))
    link = home / "java"
    link.unlink(missing_ok=True)
    link.symlink_to(folder)


def main() -> None:
    home = Path(os.environ["GRASP_HOME"]).resolve()
    for java in candidates(home):
        if java_version(java) in VERSIONS:
            print(f"[grasp] Java {java_version(java)}: {java}", flush=True)
            return
    if os.environ.get("JAVA_HOME") and Path(os.environ["JAVA_HOME"]) != home / "java":
        sys.exit(f"error: JAVA_HOME={os.environ['JAVA_HOME']} is no Java 17 or 21: correct it or unset it")
    try:
        home.mkdir(parents=True, exist_ok=True)
        fetch_jre(home)
    except Exception as error:  # noqa: BLE001 - whatever stops the download, the way out is the same
        sys.exit(
            f"error: Spark needs Java 17 or 21 and none could be fetched ({error}).\n"
            "Install one, on Debian or Ubuntu: apt-get install openjdk-17-jre-headless"
        )


if __name__ == "__main__":
    main()
