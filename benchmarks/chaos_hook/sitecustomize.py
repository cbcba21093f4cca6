"""On PYTHONPATH, this names the file-system events of a program, or kills it at one of them.

Python runs it before the program, which stays as it is; audit events come before the operation they
announce. CHAOS holds JSON: `events` ({phase: regex over "EVENT PATH [NEW PATH]"}), `log` (a file to
append the phase of each event to) and `kill` (phase, the how-manieth event of it, seconds to wait).
"""

import collections
import json
import os
import re
import signal
import sys
import threading
import time

# Of these, the first argument is a path; of a rename the second too.
_WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


class _Hook:
    def __init__(self, events: dict[str, str], log: str, kill: list | None = None):
        self._events = {phase: re.compile(pattern) for phase, pattern in events.items()}
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._kill = kill
        self._seen: collections.Counter[str] = collections.Counter()

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in _WATCHED:
            return
        if event == "open" and not _writes(*arguments[1:]):
            return
        paths = arguments[: 2 if event == "os.rename" else 1]
        text = " ".join([event, *(os.fsdecode(p) for p in paths if not isinstance(p, int))])
        for phase, pattern in self._events.items():
            if pattern.search(text):
                self._seen[phase] += 1
                os.write(self._log, f"{phase}\t{text}\n".encode())
                if self._kill and self._kill[:2] == [phase, self._seen[phase]]:
                    _kill(self._kill[2])


def _writes(mode: str | None, flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) or bool(mode and set(mode) & set("wax+"))


def _kill(delay: float) -> None:
    def now() -> None:
        time.sleep(delay)
        os.killpg(0, signal.SIGKILL)

    if delay:
        threading.Thread(target=now, daemon=True).start()
    else:
        now()


if "CHAOS" in os.environ:
    sys.addaudithook(_Hook(**json.loads(os.environ["CHAOS"])))
