"""As much of Slurm as a driver sees: `sbatch`, `srun`, `sacct` and `scancel`, by the name that this file is called by.

A job whose script has `--comment=waits` waits in the queue. The state of job 7 is in `$FAKE_SLURM/7`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ["FAKE_SLURM"])


def sbatch(words: list[str]) -> int:
    if words == ["--test-only"]:
        if "--partition=nowhere" in sys.stdin.read():
            print("sbatch: error: invalid partition specified: nowhere", file=sys.stderr)
            return 1
        return 0
    script = Path(words[0]).read_text()
    id = 1 + sum(path.name.isdigit() for path in HOME.iterdir())
    (HOME / f"{id}.sh").write_text(script)
    (HOME / str(id)).write_text("PENDING")
    if "--comment=waits" not in script:
        (HOME / str(id)).write_text("RUNNING")
        with (HOME / f"{id}.pid").open("w") as file:
            env = os.environ | {"SLURM_JOB_ID": str(id), "SLURM_PROCID": "0"}
            out = subprocess.DEVNULL
            job = subprocess.Popen(
                ["bash", str(HOME / f"{id}.sh")], env=env, stdin=out, stdout=out, stderr=out, start_new_session=True
            )
            file.write(str(job.pid))
    print(f"Submitted batch job {id}")
    return 0


def srun(words: list[str]) -> int:
    """`srun --unbuffered --output FILE COMMAND...`"""
    out = words[words.index("--output") + 1].replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
    with Path(out).open("ab") as file:
        return subprocess.call(words[words.index("--output") + 2 :], stdout=file, stderr=file)


def sacct(words: list[str]) -> int:
    print("JobID|State|NodeList")
    for id in (word for word in words if word.isdigit()):
        print(f"{id}|{(HOME / id).read_text()}|n1")
    return 0


def scancel(words: list[str]) -> int:
    for id in (word for word in words if word.isdigit()):
        end(id, "CANCELLED by 0", signal.SIGKILL if "--signal=KILL" in words else signal.SIGTERM)
    return 0


def end(id: str, state: str, number: int) -> None:
    """As Slurm does: the signal goes to every process of the job's steps, whatever session it has."""
    if (HOME / id).read_text() in ("PENDING", "RUNNING"):
        (HOME / id).write_text(state)
    if (HOME / f"{id}.pid").exists():
        for pid in below(int((HOME / f"{id}.pid").read_text())):
            if b"fake_slurm" not in Path(f"/proc/{pid}/cmdline").read_bytes():  # srun itself stays
                os.kill(pid, number)


def below(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in children] + [low for child in children for low in below(int(child))]


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    sys.exit({"sbatch": sbatch, "srun": srun, "sacct": sacct, "scancel": scancel}[name](sys.argv[1:]))
