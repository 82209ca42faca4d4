"""Where a sweep's processes run. Each executor starts real processes, small ones."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import yaml

from metarun.schema import limits_of
from metarun.sweep import executor as executors
from metarun.sweep import process, slurm
from metarun.sweep.executor import Job, Local, Needs, Pool
from metarun.sweep.ray import Ray
from metarun.sweep.slurm import Slurm
from metarun.sweep.trial import Work
from metarun.types import InputError

SCRIPT, FAKE = (Path(__file__).with_name(name) for name in ("job.py", "fake_slurm.py"))
CONF = Path(__file__).parents[2] / "conf" / "sweep" / "executor"
LONG = 60.0
"""seconds: nothing takes as long, on any machine"""


def work(folder: Path, what: str, **env: str) -> Work:
    folder.mkdir(exist_ok=True)
    return Work((sys.executable, "-S", str(SCRIPT), what), env, folder, folder / "log.txt")


def until(seen: Callable[[], Any]) -> Any:
    """What `seen` says as soon as that is true."""
    end = monotonic() + LONG
    while not (what := seen()):
        assert monotonic() < end, "waited in vain"
        sleep(0.01)
    return what


def code(job: Job) -> int:
    """Its exit code, when it has ended."""
    until(lambda: job.ended() is not None)
    result = job.ended()
    assert result is not None
    return result


def told(folder: Path) -> dict[str, Any]:
    """What a job has noted when it had started."""
    until((folder / "started").exists)
    return json.loads((folder / "started").read_text())


def runs(pid: int) -> bool:
    """Whether it does, and is no zombie that nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def cpu(folder: Path) -> Needs:
    return Needs(gpus=0, cpus=1, folder=folder)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Pool]:
    pool = Local().open(cpu(tmp_path), 2, 9)
    yield pool
    pool.close()


# this machine


def test_a_job_runs_in_its_folder_and_its_words_are_added_to_its_log(local: Pool, tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "log.txt").write_text("before\n")
    assert code(local.start(work(tmp_path / "0", "exit3"), 0)) == 3
    assert (tmp_path / "0" / "log.txt").read_text() == "before\nsaid out\nsaid err\n"
    job = local.start(work(tmp_path / "1", "tell", METARUN_TEST="yes", HOME="/elsewhere"), 1)
    assert code(job) == 0
    at = told(tmp_path / "1")
    assert at["cwd"] == str(tmp_path / "1")
    assert at["env"]["METARUN_TEST"] == "yes" and at["env"]["HOME"] == "/elsewhere"
    assert at["env"]["PATH"] == os.environ["PATH"]
    assert at["session"] == at["pid"]  # Ctrl-C at the terminal is for the driver


def test_stop_lets_a_job_save_and_kill_does_not(local: Pool, tmp_path: Path) -> None:
    job = local.start(work(tmp_path / "0", "wait"), 0)
    told(tmp_path / "0")
    assert job.ended() is None
    job.stop()
    assert code(job) == 143
    assert (tmp_path / "0" / "saved").exists()
    deaf = local.start(work(tmp_path / "1", "deaf"), 0)
    told(tmp_path / "1")
    deaf.stop()
    sleep(0.1)
    assert deaf.ended() is None
    deaf.kill()
    assert code(deaf) == -signal.SIGKILL
    for gone in (job, deaf):  # nothing is left that this could reach
        gone.stop()
        gone.kill()


def test_a_job_that_is_killed_leaves_no_child_and_disturbs_no_other(local: Pool, tmp_path: Path) -> None:
    other = local.start(work(tmp_path / "1", "wait"), 1)
    job = local.start(work(tmp_path / "0", "parent"), 0)
    at = told(tmp_path / "0")
    assert runs(at["child"])
    os.kill(at["pid"], signal.SIGKILL)
    assert code(job) == -signal.SIGKILL
    until(lambda: not runs(at["child"]))
    told(tmp_path / "1")
    assert other.ended() is None


def test_what_cannot_be_started_has_ended_and_says_why(local: Pool, tmp_path: Path) -> None:
    job = local.start(Work((str(tmp_path / "no-such"),), {}, tmp_path, tmp_path / "log.txt"), 0)
    assert job.ended() == 127
    job.stop()
    job.kill()
    assert "error: could not be started" in (tmp_path / "log.txt").read_text()
    assert local.start(work(tmp_path / "0", "exit0"), 0).ended() in (None, 0)
    gone = Work((sys.executable, "-V"), {}, tmp_path / "gone", tmp_path / "gone" / "log.txt")
    assert local.start(gone, 0).ended() == 127


def test_closing_ends_the_deaf_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors.close, "__defaults__", (1.0,))
    pool = Local().open(cpu(tmp_path), 3, 9)
    jobs = [pool.start(work(tmp_path / what, what), slot) for slot, what in enumerate(("wait", "deaf", "exit0"))]
    pids = [told(tmp_path / what)["pid"] for what in ("wait", "deaf")]
    code(jobs[2])
    pool.close()
    assert [job.ended() for job in jobs] == [143, -signal.SIGKILL, 0]
    assert not any(runs(pid) for pid in pids)
    assert (tmp_path / "wait" / "saved").exists()


DRIVER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from metarun.sweep import process
from metarun.sweep.trial import Work
jobs = []
for folder in map(Path, {folders}):
    jobs.append(process.start(Work((sys.executable, "-S", {script!r}, "wait"), {{}}, folder, folder / "log.txt"), {{}}))
time.sleep(600)
"""


def test_jobs_end_when_their_driver_is_killed(tmp_path: Path) -> None:
    """Each has a pipe that only the driver holds the other end of: not the other jobs either."""
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    script = DRIVER.format(root=str(SCRIPT.parents[2]), folders=[*map(str, folders)], script=str(SCRIPT))
    driver = subprocess.Popen([sys.executable, "-c", script])
    try:
        pids = [told(folder)["pid"] for folder in folders]
    finally:
        driver.kill()
        driver.wait()
    until(lambda: not any(runs(pid) for pid in pids))
    assert all((folder / "alone").exists() for folder in folders)


# slots


def test_cores_make_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "cores", lambda: 8)

    def slots(cpus: int, workers: int | None, at_most: int) -> int:
        return Local().open(Needs(0, cpus, tmp_path), workers, at_most).slots

    assert slots(1, None, 99) == 8
    assert slots(3, None, 99) == 2
    assert slots(99, None, 99) == 1
    assert slots(1, None, 5) == 5
    assert slots(3, 20, 99) == 20
    assert slots(3, 20, 7) == 7


@pytest.mark.parametrize(
    "gpus, workers, devices",
    [
        (1.0, None, ["a", "b", "c", "d"]),
        (1.0, 2, ["a", "b"]),
        (0.5, 4, ["a", "b", "c", "d"]),  # shared only when there are more runs than GPUs
        (0.5, None, ["a", "b", "c", "d", "a", "b", "c", "d"]),
        (1 / 3, 12, ["a", "b", "c", "d"] * 3),
        (2.0, None, ["a,b", "c,d"]),
        (3.0, None, ["a,b,c"]),
    ],
)
def test_a_slot_has_gpus_of_its_own(
    gpus: float, workers: int | None, devices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "visible", lambda: ["a", "b", "c", "d"])
    slots, groups = executors.room(Needs(gpus, 1, tmp_path), workers, 99)
    assert [executors.own(groups, slot)["CUDA_VISIBLE_DEVICES"] for slot in range(slots)] == devices


def test_a_job_sees_the_gpus_of_its_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    pool = Local().open(Needs(1, 1, tmp_path), None, 9)
    assert pool.slots == 2
    for slot, device in enumerate(("5", "GPU-7")):
        # What the driver itself was given is not what the run is to have.
        pool.start(work(tmp_path / str(slot), "tell", CUDA_VISIBLE_DEVICES="5,GPU-7"), slot)
        assert told(tmp_path / str(slot))["env"]["CUDA_VISIBLE_DEVICES"] == device
    pool.close()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert executors.visible() == ["0", "1"]


@pytest.mark.parametrize(
    "gpus, workers, here, says",
    [
        (1.0, None, 0, "needs 1 GPU, and this machine has none; set device=cpu"),
        (4.0, None, 2, "needs 4 GPUs, and this machine has 2"),
        (1.0, 3, 2, "sweep.workers=3: the 2 GPUs of this machine hold 2; lower it, or raise sweep.per_gpu"),
        (0.5, 3, 1, "sweep.workers=3: the 1 GPU of this machine holds 2; lower it"),
        (1.5, None, 4, "cannot have 1.5 GPUs"),
    ],
)
def test_more_than_the_gpus_hold_is_refused(
    gpus: float, workers: int | None, here: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "visible", lambda: [str(i) for i in range(here)])
    with pytest.raises(InputError, match="^(?s:.*)" + says):
        Local().open(Needs(gpus, 1, tmp_path), workers, 99)


# by name


def test_an_executor_is_chosen_by_name() -> None:
    assert executors.executor({"name": "local"}) == Local()
    with pytest.raises(InputError, match=r"sweep.executor.name=slrm: no such executor; did you mean slurm\?"):
        executors.executor({"name": "slrm"})
    with pytest.raises(InputError, match=r"sweep.executor.partition: no such setting"):
        executors.executor({"name": "local", "partition": "gpu"})
    with pytest.raises(InputError, match="no such executor"):
        executors.executor(None)


@pytest.mark.parametrize("name, settings", [("local", Local()), ("slurm", Slurm()), ("ray", Ray())])
def test_what_conf_says_are_the_defaults(name: str, settings: Any) -> None:
    said = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert executors.executor(said) == settings
    assert said == {"name": name, **{key: getattr(settings, key) for key in limits_of(type(settings))}}


# what schedulers are given to do


def attended(tmp_path: Path, what: str, ways: str = "", how: str = "attend") -> subprocess.Popen[bytes]:
    """A process that attends to a job, and exits as it did, and the job's folder."""
    script = (
        f"import sys; sys.path[:0] = {[str(SCRIPT.parent), str(SCRIPT.parents[2])]}; from pathlib import Path\n"
        "from metarun.sweep import process\nfrom metarun.sweep.trial import Work\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"work = Work((sys.executable, '-S', {str(SCRIPT)!r}, {what!r}), {{}}, folder, folder / 'log.txt')\n"
        f"code = process.{how}(work, {{'OWN': '1'}}, {ways})\n"
        "assert not [name for name in ('torch', 'hydra', 'optuna') if name in sys.modules]\n"
        "sys.exit(code % 256)"
    )
    return subprocess.Popen([sys.executable, "-c", script])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_to_who_attends_lets_the_job_save(tmp_path: Path, number: int) -> None:
    task = attended(tmp_path, "wait")
    assert told(tmp_path)["env"]["OWN"] == "1"
    task.send_signal(number)
    task.send_signal(number)  # which must not be a second one to the job
    assert task.wait(LONG) == 143
    assert (tmp_path / "saved").exists()


def test_a_scheduler_that_signals_all_processes_does_so_once(tmp_path: Path) -> None:
    """As Slurm does: a second SIGTERM would kill the run while it saves."""
    task = attended(tmp_path, "wait", "pass_on=False")
    os.kill(told(tmp_path)["pid"], signal.SIGTERM)
    task.send_signal(signal.SIGTERM)
    assert task.wait(LONG) == 143
    assert (tmp_path / "saved").exists()


def test_files_stop_and_kill(tmp_path: Path) -> None:
    tasks = {}
    for name, what in (("stop", "wait"), ("kill", "deaf"), ("silent", "wait")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "driver").write_text("1")
        patience = 1 if name == "silent" else LONG
        ways = f"kill=Path('{folder}/kill'), driver=Path('{folder}/driver'), patience={patience}"
        tasks[name] = attended(folder, what, ways, "task")
    for name in tasks:
        told(tmp_path / name)
    (tmp_path / "stop" / "driver").unlink()
    (tmp_path / "kill" / "kill").touch()
    assert {name: task.wait(LONG) for name, task in tasks.items()} == {"stop": 143, "kill": 256 - 9, "silent": 143}
    assert {name: (tmp_path / name / "saved").exists() for name in tasks} == {
        "stop": True,
        "kill": False,
        "silent": True,
    }


def test_a_driver_is_alive_while_it_says_something_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(process, "monotonic", lambda: now[0])
    file = tmp_path / "driver"
    file.write_text("0")
    alive = process.signs_of_life(file, 10)
    for beat in range(5):
        file.write_text(str(beat))
        now[0] += 9
        assert alive()
    now[0] += 9
    assert alive()
    now[0] += 2
    assert not alive()
    file.write_text("back")
    assert alive()
    file.unlink()
    assert alive()  # a shared file system may err once
    assert not alive()


def test_who_attends_is_killed_and_so_the_job_ends(tmp_path: Path) -> None:
    task = attended(tmp_path, "wait")
    pid = told(tmp_path)["pid"]
    task.kill()
    task.wait()
    until(lambda: not runs(pid))
    assert (tmp_path / "alone").exists()


def test_exit_codes_pass_through(tmp_path: Path) -> None:
    assert attended(tmp_path, "exit5").wait(LONG) == 5
    missing = Work((str(tmp_path / "no-such"),), {}, tmp_path, tmp_path / "log.txt")
    assert process.attend(missing, {}) == 127


# Slurm


def test_submitit_runs_stops_and_kills_on_this_machine(tmp_path: Path) -> None:
    pool = Slurm("local", more={"account": "me"}).open(cpu(tmp_path), 3, 9)
    jobs = [pool.start(work(tmp_path / what, what), slot) for slot, what in enumerate(("exit3", "wait", "deaf"))]
    pids = [told(tmp_path / what)["pid"] for what in ("wait", "deaf")]
    jobs[2].stop()
    jobs[2].kill()
    assert code(jobs[0]) == 3
    assert code(jobs[2]) == -signal.SIGKILL
    assert (tmp_path / "exit3" / "log.txt").read_text() == "said out\nsaid err\n"
    assert jobs[1].ended() is None
    pool.close()
    assert jobs[1].ended() == 143
    assert (tmp_path / "wait" / "saved").exists()
    assert not any(runs(pid) for pid in pids)
    assert not (tmp_path / "slurm").exists()  # no pickle is left


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a Slurm that has just been installed, and is asked often."""
    home = tmp_path / "cluster"
    (home / "bin").mkdir(parents=True)
    for name in ("sbatch", "srun", "sacct", "scancel"):
        (home / "bin" / name).write_text(f"#!{sys.executable} -S\n" + FAKE.read_text())
        (home / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(home))
    for name, value in (("ASK", 0.2), ("LIST", 0.05), ("LATE", 0.5)):
        monkeypatch.setattr(slurm, name, value)
    return home


def test_slurm_jobs_save_when_they_are_cancelled_and_say_why_they_were_ended(queue: Path, tmp_path: Path) -> None:
    pool = Slurm(memory_gb=4).open(Needs(1, 3, tmp_path), 3, 9)
    assert pool.slots == 3
    jobs = [pool.start(work(tmp_path / what, what), slot) for slot, what in enumerate(("exit3", "wait", "deaf"))]
    script = (queue / "1.sh").read_text()
    for flag in ("cpus-per-task=3", "gpus-per-node=1", "mem=4096MB", "time=720", "signal=TERM@90", "no-requeue"):
        assert f"#SBATCH --{flag}\n" in script
    pids = [told(tmp_path / what)["pid"] for what in ("wait", "deaf")]
    assert code(jobs[0]) == 3
    jobs[1].stop()
    assert code(jobs[1]) == 143
    assert (tmp_path / "wait" / "saved").exists()
    assert jobs[2].ended() is None
    # The machine runs out of memory, and Slurm's own process there is killed with the job.
    (queue / "3").write_text("OUT_OF_MEMORY")
    subprocess.run(["scancel", "--signal=KILL", "3"], check=True)
    assert code(jobs[2]) == -signal.SIGKILL
    said = (tmp_path / "deaf" / "log.txt").read_text()
    assert "error: Slurm has ended job 3: OUT_OF_MEMORY; raise sweep.executor.memory_gb" in said
    assert not any(runs(pid) for pid in pids)
    pool.close()


def test_slurm_jobs_that_wait_in_the_queue_are_taken_out_of_it(queue: Path, tmp_path: Path) -> None:
    pool = Slurm(more={"comment": "waits", "reservation": "x"}).open(cpu(tmp_path), 2, 9)
    jobs = [pool.start(work(tmp_path / str(slot), "wait"), slot) for slot in range(2)]
    assert "#SBATCH --reservation=x\n" in (queue / "1.sh").read_text()
    (queue / "1").write_text("NODE_FAIL")  # by the administrator, say
    assert code(jobs[0]) == -signal.SIGKILL
    assert "error: Slurm has ended job 1: NODE_FAIL" in (tmp_path / "0" / "log.txt").read_text()
    jobs[1].stop()
    assert code(jobs[1]) == 143
    pool.close()


def test_jobs_of_a_driver_that_was_killed_are_cancelled_by_the_next(queue: Path, tmp_path: Path) -> None:
    first = Slurm().open(cpu(tmp_path), 1, 9)
    first.start(work(tmp_path / "0", "wait"), 0)
    pid = told(tmp_path / "0")["pid"]
    second = Slurm().open(cpu(tmp_path), 1, 9)  # which knows of the first only by its files
    until(lambda: not runs(pid))
    assert (tmp_path / "0" / "saved").exists()
    assert (queue / "1").read_text().startswith("CANCELLED")
    second.close()


def test_what_slurm_would_refuse_is_refused_first(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, needs, workers, says in (
        ({}, cpu(tmp_path), None, "sweep.workers=auto: Slurm does not say"),
        ({}, Needs(0.5, 1, tmp_path), 2, "sweep.per_gpu: Slurm gives out whole GPUs"),
        (
            {"partition": "nowhere"},
            cpu(tmp_path),
            2,
            "Slurm refuses such jobs: .* invalid partition .*: nowhere",
        ),
    ):
        with pytest.raises(InputError, match=says):
            Slurm(**settings).open(needs, workers, 9)
    with pytest.raises(InputError, match=r"sweep.executor: more.time: is set by the sweep"):
        executors.executor({"name": "slurm", "more": {"time": 5}})
    monkeypatch.setenv("PATH", "/usr/bin")
    with pytest.raises(InputError, match="this machine has no sbatch"):
        Slurm().open(cpu(tmp_path), 2, 9)
    with pytest.raises(InputError, match="needs 1 GPU, and this machine has none"):
        monkeypatch.setattr(executors, "visible", list)
        Slurm("local").open(Needs(1, 1, tmp_path), 2, 9)


# Ray


def test_a_ray_cluster_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        for wrong in (address, "nonsense"):
            with pytest.raises(InputError, match=f"sweep.executor.address={wrong}: no Ray cluster can be reached"):
                Ray(wrong).open(cpu(tmp_path), None, 9)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines of one core and one GPU each, as far as Ray knows; and a third that comes and goes."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    handler = signal.getsignal(signal.SIGTERM)
    machine = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    machine |= {"include_log_monitor": False, "no_monitor": True}  # which take seconds to start
    cluster = Cluster(initialize_head=True, head_node_args=machine)
    cluster.add_node(**machine)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def on_ray(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One connection for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_TEST", "the driver's")
        mine = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], dict(os.environ), Path.cwd()
        pool = Ray(cluster.address).open(Needs(0, 1, tmp_path_factory.mktemp("sweep")), None, 9)
        assert mine == ([signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)], dict(os.environ), Path.cwd())
        yield pool
        pool.close()


def node(pid: int) -> int:
    """Of the process that Ray has started for a job: its machine's."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_ray_runs_jobs_on_all_machines_and_stop_lets_them_save(on_ray: Pool, tmp_path: Path) -> None:
    assert on_ray.slots == 2
    jobs = [on_ray.start(work(tmp_path / str(slot), "wait", OTHER="work"), slot) for slot in range(2)]
    at = [told(tmp_path / str(slot)) for slot in range(2)]
    assert len({node(a["above"]) for a in at}) == 2
    assert [a["cwd"] for a in at] == [str(tmp_path / "0"), str(tmp_path / "1")]
    assert [(a["env"]["METARUN_TEST"], a["env"]["OTHER"]) for a in at] == [("the driver's", "work")] * 2
    waits = on_ray.start(work(tmp_path / "2", "wait"), 2)
    waits.stop()
    assert code(waits) == 143
    assert not (tmp_path / "2" / "started").exists()
    jobs[0].stop()
    assert code(jobs[0]) == 143
    assert (tmp_path / "0" / "saved").exists()
    # A Ray process that is killed ends its own job alone.
    assert jobs[1].ended() is None
    os.kill(at[1]["above"], signal.SIGKILL)
    assert code(jobs[1]) == -signal.SIGKILL
    assert "error: Ray has lost this job: WorkerCrashedError" in (tmp_path / "1" / "log.txt").read_text()
    until(lambda: not runs(at[1]["pid"]))


def test_ray_hands_exit_codes_on_and_kills_the_deaf(on_ray: Pool, tmp_path: Path) -> None:
    jobs = [on_ray.start(work(tmp_path / what, what), slot) for slot, what in enumerate(("exit3", "deaf"))]
    assert code(jobs[0]) == 3
    assert (tmp_path / "exit3" / "log.txt").read_text() == "said out\nsaid err\n"
    missing = on_ray.start(Work((str(tmp_path / "no-such"),), {}, tmp_path, tmp_path / "log.txt"), 0)
    pid = told(tmp_path / "deaf")["pid"]
    jobs[1].kill()
    assert code(jobs[1]) == -signal.SIGKILL
    assert not runs(pid)
    assert code(missing) == 127
    assert "does it see" in (tmp_path / "log.txt").read_text()


def test_ray_gives_out_parts_of_gpus(on_ray: Pool, tmp_path: Path) -> None:
    pool = Ray(None).open(Needs(0.5, 1, tmp_path), None, 9)  # goes over the connection that there is
    jobs = [pool.start(work(tmp_path / str(slot), "tell"), slot) for slot in range(2)]
    assert [code(job) for job in jobs] == [0, 0]
    assert [told(tmp_path / str(slot))["env"]["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["0", "0"]
    with pytest.raises(InputError, match="no machine of the Ray cluster has 1 cores and 2 GPUs"):
        Ray(None).open(Needs(2, 1, tmp_path), None, 9)
    with pytest.raises(InputError, match="no machine of the Ray cluster has 3 cores for a run"):
        Ray(None).open(Needs(0, 3, tmp_path), None, 9)


def test_a_machine_that_dies_ends_its_jobs_with_the_reason(on_ray: Pool, cluster: Any, tmp_path: Path) -> None:
    jobs = [on_ray.start(work(tmp_path / str(slot), "wait"), slot) for slot in range(2)]
    at = [told(tmp_path / str(slot)) for slot in range(2)]
    [other] = cluster.worker_nodes
    cluster.remove_node(other, allow_graceful=False)
    until(lambda: any(job.ended() is not None for job in jobs))
    [lost] = [slot for slot, job in enumerate(jobs) if job.ended() is not None]
    assert jobs[lost].ended() == -signal.SIGKILL
    assert "error: Ray has lost this job: " in (tmp_path / str(lost) / "log.txt").read_text()
    until(lambda: not runs(at[lost]["pid"]))
    assert jobs[1 - lost].ended() is None
    on_ray.close()  # the last of Ray's tests: the job that is left saves
    assert (tmp_path / str(1 - lost) / "saved").exists()
    assert jobs[1 - lost].ended() == 143
