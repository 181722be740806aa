"""An ssh that goes nowhere: it runs the command here, in a home of its own, and can be told to break.

fake_ssh.sh HOME ... -- host command
HOME/break   lines of a text each: the first whose text is in the command is taken out, and the connection breaks
HOME/asked   every command, one per line
"""

from __future__ import annotations

from pathlib import Path

SCRIPT = """#!/bin/sh
home=$1
for last; do :; done
printf '%s\\n' "$last" | tr '\\n' ' ' >> "$home/asked"; echo >> "$home/asked"
if [ -s "$home/break" ]; then
    first=$(head -n 1 "$home/break")
    case "$last" in
        *"$first"*)
            sed -i 1d "$home/break"
            echo "Connection to device closed by remote host." >&2
            exit 255;;
    esac
fi
HOME="$home" XDG_CACHE_HOME= exec sh -c "$last"
"""


def fake_ssh(home: Path) -> tuple[str, str]:
    """The words that stand for `ssh`; `home` is the device's home folder."""
    home.mkdir(parents=True, exist_ok=True)
    script = home.parent / "fake_ssh.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    return str(script), str(home)
