"""Training on ranks that are started for it, on this machine or on several hosts, and started again if need be."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mfpar import errors
from mfpar.api.runs import Event, log_file, refuse_outputs
from mfpar.blockfile import BlockedFile
from mfpar.config import ModelConfig, SafetyConfig, TrainConfig
from mfpar.engine.tables import require_places
from mfpar.losses import Loss, importable
from mfpar.supervise.hosts import Host, parse_hosts
from mfpar.supervise.supervisor import Supervisor


def train_on_ranks(
    path: str | Path,
    output: str | Path,
    model: ModelConfig,
    train: TrainConfig,
    ranks: int | None,
    listen: Callable[[Event], None],
    *,
    hosts: str | Sequence[Host] | None = None,
    restarts: int = 0,
    safety: SafetyConfig | None = None,
    log: str | Path | None = None,
    trace: str | Path | None = None,
    debug_log: str | Path | None = None,
    force: bool = False,
) -> None:
    """`train_file` on ranks that mpirun starts, which is started again where that can help. Local.

    Parameters
    ----------
    ranks : how many, on this machine; None: `hosts` says
    listen : called with each event; {"kind": "restart", …} is told before each start but the first
    hosts : where to start ranks, as "alpha:2,beta:2": names, with how many ranks each gets
    restarts : how often the job may be started again, on the hosts that answer
    debug_log : folder for a log of each rank

    Raises
    ------
    What `train_file` raises, and
    RankError
        Ranks were lost or hung, and no restart is left.
    PreemptedError
        SIGTERM, SIGINT or SIGUSR1 has come, and there are checkpoints to go on from.
    """
    safety = safety or SafetyConfig()
    if (ranks is None) == (hosts is None):
        raise errors.ConfigError("either ranks or hosts: both say where to start ranks")
    if ranks is not None and ranks < 1:
        raise errors.ConfigError(f"ranks={ranks}: expected an integer ≥ 1")
    if restarts < 0:
        raise errors.ConfigError(f"restarts={restarts}: expected an integer ≥ 0")
    several = parse_hosts(hosts) if isinstance(hosts, str) else hosts
    refuse_outputs(Path(path), Path(output), log, trace, force, safety, safety.resume is not None)
    with BlockedFile(path) as file:
        require_places(file.grid.size, ranks or sum(host.slots for host in several or ()))
    if isinstance(model.loss, Loss):
        model = model.having(loss=importable(model.loss))

    def arguments(resume: bool, again: bool) -> list[str]:
        how = safety.having(resume="auto") if resume else safety
        options = ["train", str(path), "--output", str(output), "--progress", "json"]
        options += [*model.as_options(), *train.as_options(), *how.as_options()]
        files = {"--trace": trace, "--debug-log": debug_log}
        options += [word for name, place in files.items() if place is not None for word in (name, str(place))]
        return options + ["--force"] * (force or again)  # what was there before was refused before the first start

    with log_file(log, safety.resume is not None) as write:  # here, as not all that happens is heard by ranks

        def hear(event: Event) -> None:
            write(event)
            listen(event)

        Supervisor(
            arguments, Path(output), hear, ranks=ranks or 1, hosts=several, restarts=restarts,
            hang_timeout=safety.hang_timeout, checkpoints=safety.checkpoint is not None,
            tolerant=bool(safety.replicas or safety.checkpoint), anew=safety.respawn,
        ).run()  # fmt: skip
