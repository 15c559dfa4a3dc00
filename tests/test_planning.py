"""The model of an epoch against hand-made cases, a slow twin, and what real runs send; `mfpar plan` itself."""

import json
import math

import numpy as np
import pytest
import simulated
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import plant

from mfpar.api import train_file
from mfpar.blockfile import BlockedFile
from mfpar.cli import quantities
from mfpar.cli.main import main
from mfpar.config import ModelConfig, TrainConfig
from mfpar.engine.balance import step_balance
from mfpar.errors import ConfigError
from mfpar.grid import span
from mfpar.parallel.comm import Serial
from mfpar.planning import calibration
from mfpar.planning.cluster import BETWEEN, Cluster, Crews, Network, Trouble
from mfpar.planning.job import Job
from mfpar.planning.plan import fewest_ranks, make_plan, needs_most, usual_ranks
from mfpar.planning.simulator import STEPS, simulate
from mfpar.planning.traffic import order_before, sent_in_epoch
from mfpar.schedule import ring
from mfpar.shards import Layout

FREE = Network(math.inf, 0.0)  # costs nothing
LAYOUT = Layout(8, False)
BYTES = 4 * LAYOUT.floats(9)  # of a block of 9 columns


def job_of(counts, seed=0, columns=9, **further) -> Job:
    """A job with these ratings in its blocks."""
    counts = np.array(counts)
    size = len(counts)
    return Job(
        np.full(size, 10), np.full(size, columns), {"train": counts}, LAYOUT, seed, 8, int(counts.sum()), **further
    )


def even(size, ratings=1000) -> Job:
    """A job whose blocks have as many ratings each."""
    return job_of(np.full((size, size), ratings))


def quick(rate=1e6, **settings_given) -> Cluster:
    """A cluster in which nothing takes time but what is said."""
    return Cluster(rate, **({"network": FREE, "visit": 0.0, "look": 0.0} | settings_given))


def without_end(epoch) -> float:
    """Seconds of an epoch up to where ranks agree on it."""
    return epoch.seconds - epoch.agreeing


def naive(job, ranks, cluster, epoch) -> float:
    """The same by visits, each at the moment that its conditions hold: seconds until all has been visited and sent."""
    size, order = job.size, ring(job.size, job.seed, epoch)
    crews = Crews.of(size, ranks, cluster)
    node = crews.node_of_place.tolist()
    nodes = node[-1] + 1
    worker = np.repeat(np.arange(len(crews.begins)), crews.ends - crews.begins).tolist()
    bandwidth, latency, look = cluster.network.bandwidth, cluster.network.latency, cluster.look
    before = order_before(job, epoch)
    here, there = {int(j): i for i, j in enumerate(before)}, {int(j): i for i, j in enumerate(order)}
    start = []
    for t in range(nodes):
        out = [j for j in here if node[here[j]] == t != node[there[j]]]
        into = [j for j in here if node[there[j]] == t != node[here[j]]]
        most = max(sum(int(job.block_bytes[j]) for j in some) for some in (out, into))
        start.append(most / bandwidth + math.ceil(len(into) / cluster.room) * latency)
    ended, came, sent = {}, {}, {}
    free = [start[n] for n in crews.nodes]
    for step in range(size):
        for i in range(size):
            j, above = int(order[(i + step) % size]), (i + 1) % size
            begin = free[worker[i]]
            if step and node[above] == node[i]:
                begin = max(begin, ended[above, step - 1])
            elif step:
                begin = max(begin, came[node[i], step - 1])
            ended[i, step] = free[worker[i]] = begin + cluster.visit + job.counts["train"][i, j] / cluster.rate
        for t in range(nodes if nodes > 1 else 0):
            first = node.index((t + 1) % nodes)
            wait = [ended[first, step] + look, sent.get((t + 1, step - 1), 0.0), 0.0]
            if step >= cluster.room:  # room at t comes from what t itself has sent
                wait.append(sent[t or nodes, step - cluster.room] + look)
            through = job.block_bytes[order[(first + step) % size]] / bandwidth
            sent[t + 1, step] = max(wait) + through  # by the node that receives, plus 1: sent[t] is what t has sent
            came[t, step] = sent[t + 1, step] + latency + look
    return max([*ended.values(), *came.values()])


# What a case takes, by hand.


def test_one_rank_takes_the_sum_of_its_blocks():
    counts = np.random.default_rng(1).integers(0, 5000, (6, 6))
    epoch = simulate(job_of(counts), 1, Cluster(1e6, visit=1e-5))
    assert without_end(epoch) == pytest.approx(counts.sum() / 1e6 + 36e-5)
    assert epoch.agreeing == BETWEEN
    assert epoch.exchange == 0
    assert epoch.work.tolist() == [pytest.approx(counts.sum() / 1e6 + 36e-5)]
    assert epoch.balance == 1


@pytest.mark.parametrize(("ranks", "threads", "per_node"), [(2, 1, 1), (4, 1, 1), (4, 1, 2), (2, 2, 1), (1, 4, 1)])
def test_workers_share_even_blocks_out_where_sending_is_free(ranks, threads, per_node):
    epoch = simulate(even(8), ranks, quick(threads=threads, ranks_per_node=per_node))
    assert without_end(epoch) == pytest.approx(64 * 1000 / 1e6 / (ranks * threads))
    assert epoch.work.tolist() == pytest.approx([64 * 1000 / 1e6 / (ranks * threads)] * (ranks * threads))


def test_a_slow_link_sets_the_pace():
    """A block takes a second, 4 visits of 1 ms: the link is never idle, and time is that of the transfers."""
    epoch = simulate(even(8), 2, quick(network=Network(BYTES, 0.0)))
    sent = without_end(epoch) - epoch.exchange
    assert sent == pytest.approx(8 + 1e-3)  # after the first visit of all, eight blocks one behind the other


def test_latency_is_hidden_behind_the_other_visits():
    """A step is 4 visits of 1 ms; a block that left after the first of them is wanted after 3 + 3 further ones."""
    hidden = simulate(even(8), 2, quick(network=Network(math.inf, 5e-3)), epoch=1)
    shown = simulate(even(8), 2, quick(network=Network(math.inf, 9e-3)), epoch=1)
    assert hidden.seconds - hidden.exchange - hidden.agreeing == pytest.approx(8 * 4e-3 + 2e-3)  # the last blocks' way
    # Steps end 4, 11, 15, 22, … ms after the exchange: every other one is 3 ms late. The last block arrives at 47.
    assert shown.seconds - shown.exchange - shown.agreeing == pytest.approx(47e-3)


def test_a_straggler_holds_up_all():
    cluster = quick(trouble=Trouble(slow=(1, 1.5)))
    epoch = simulate(even(16), 4, cluster)
    assert without_end(epoch) == pytest.approx(1.5 * 16 * 16 * 1e-3 / 4, rel=0.02)
    assert epoch.work.tolist() == pytest.approx([0.064, 0.096, 0.064, 0.064])


def test_a_pause_costs_no_more_than_itself():
    calm = simulate(even(16), 4, quick())
    paused = simulate(even(16), 4, quick(trouble=Trouble(pause=(2, 5, 0.01))))
    assert calm.seconds < paused.seconds <= calm.seconds + 0.01 + 1e-12
    assert paused.work.tolist() == calm.work.tolist()


def test_uneven_steps_cost_less_than_in_lockstep():
    cluster = quick(trouble=Trouble(spread=0.3))
    epoch = simulate(even(64), 8, cluster)
    assert epoch.work.max() * (1 - 1e-12) <= without_end(epoch) < 0.9 * (epoch.lockstep - epoch.agreeing)
    assert simulate(even(64), 8, cluster).seconds == epoch.seconds
    assert simulate(even(64), 8, quick(trouble=Trouble(spread=0.3, seed=1))).seconds != epoch.seconds


def test_a_slow_disk_sets_the_pace():
    """8,000 ratings of 8 bytes for each of two nodes that read 64 kB/s."""
    epoch = simulate(even(4), 2, quick(disk=64e3), streamed=True)
    assert without_end(epoch) == pytest.approx(1.0, rel=0.02)
    fast = simulate(even(4), 2, quick(disk=math.inf), streamed=True)
    assert fast.seconds == simulate(even(4), 2, quick()).seconds
    together = simulate(even(4), 2, quick(disk=64e3, ranks_per_node=2), streamed=True)
    assert without_end(together) == pytest.approx(2.0, rel=0.02)


def test_a_large_grid_goes_on_at_its_pace():
    job = Job.of_shape((20_000, 20_000), 4096**2, ModelConfig(biases=False, factors=8), TrainConfig(), grid=4096)
    assert job.size > STEPS
    epoch = simulate(job, 4, quick(network=Network(1e12, 0.0)))
    assert without_end(epoch) == pytest.approx(4096 * 4096 / 1e6 / 4, rel=1e-3)


# What holds always.


@st.composite
def cases(draw):
    """A small job, ranks, and a cluster."""
    size = draw(st.integers(1, 9))
    seed = draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4000, (size, size))
    job = job_of(counts, seed, columns=rng.integers(1, 40, size), evaluated=draw(st.booleans()))
    network = Network(draw(st.sampled_from([1e4, 1e6, 1e8])), draw(st.sampled_from([0.0, 1e-4, 1e-2])))
    cluster = Cluster(
        1e6, network, threads=draw(st.integers(1, 3)), ranks_per_node=draw(st.integers(1, 3)),
        look=draw(st.sampled_from([0.0, 3e-4])), room=draw(st.integers(1, 3)),
    )  # fmt: skip
    return job, draw(st.integers(1, size)), cluster, draw(st.integers(1, 3))


@given(cases())
@settings(max_examples=200, deadline=None)
def test_equals_its_slow_twin(case):
    assert without_end(simulate(*case)) == pytest.approx(naive(*case), rel=1e-9)


@given(cases(), st.floats(1.1, 10))
@settings(max_examples=60, deadline=None)
def test_a_better_cluster_is_never_slower(case, times):
    job, ranks, cluster, epoch = case
    seconds = simulate(*case).seconds
    for better in (
        {"network": Network(cluster.network.bandwidth * times, cluster.network.latency)},
        {"network": Network(cluster.network.bandwidth, cluster.network.latency / times)},
        {"rate": cluster.rate * times},
        {"room": cluster.room + 1},
        {"look": cluster.look / times},
    ):
        changed = Cluster(**(vars(cluster) | better))
        assert simulate(job, ranks, changed, epoch).seconds <= seconds * (1 + 1e-12)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_compute_is_conserved(case):
    job, ranks, cluster, epoch = case
    done = simulate(*case)
    assert done.work.sum() == pytest.approx(job.counts["train"].sum() / cluster.rate + job.size**2 * cluster.visit)
    assert done.seconds >= done.work.max() * (1 - 1e-12)
    assert 0 <= done.efficiency <= 1
    expected = step_balance(job.counts["train"], ring(job.size, job.seed, epoch), ranks)
    assert done.balance == pytest.approx(np.mean(expected), abs=6e-4)


# Against real runs.


@pytest.mark.parametrize(("ranks", "team"), [(2, 1), (4, 1), (4, 2), (3, 2), (2, 2)])
@pytest.mark.parametrize("heldout", [True, False])
def test_bytes_are_those_of_a_run(tmp_path, ranks, team, heldout):
    path = plant(tmp_path / "ratings.h5").path if heldout else tmp_path / "whole.h5"
    if not heldout:
        import mfpar

        users, items = np.divmod(np.arange(4000), 50)
        mfpar.convert((users, items, users % 3 + items % 2.0), path, grid=11)
    model, train = ModelConfig(factors=12), TrainConfig(epochs=4, seed=3, optimizer="adagrad")
    told = []

    def body(comm):
        train_file(path, tmp_path / "model.h5", model, train, comm, told.append)

    simulated.run(ranks, body, team=team)
    told = [event for event in told if event["kind"] == "epoch"]
    with BlockedFile(path) as file:
        job = Job.of_file(file, model, train)
    assert job.evaluated == heldout
    cluster = quick(ranks_per_node=team)
    assert [event["bytes_sent"] for event in told] == [sent_in_epoch(job, ranks, cluster, e) for e in (1, 2, 3, 4)]
    assert (told[0]["bytes_sent"] > 0) == (ranks > team)
    balances = [np.mean(event["step_balance"]) for event in told]
    assert balances == pytest.approx([simulate(job, ranks, cluster, e).balance for e in (1, 2, 3, 4)], abs=1e-3)


@pytest.mark.parametrize("loss", ["squared", "logistic", "poisson", "bpr-row", "one-class"])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_kernels_are_tried_on_a_description(loss, optimizer):
    model, found = ModelConfig(factors=8, loss=loss).resolved()
    train = TrainConfig(optimizer=optimizer).resolved(found)
    job = Job.of_shape((400, 300), 9000, model, train, grid=4)
    sample = calibration.Sample.of_job(job, found, 3)
    assert sample.strip.offsets.shape == (3, 5)
    assert len(sample.strip.values) == 12 * -(-9000 // 16)
    rate = calibration.update_rate(sample, model, found, train, workers=2, seconds=0.0)
    assert 0 < rate < math.inf


def test_kernels_are_tried_on_a_file(tmp_path, monkeypatch):
    planted = plant(tmp_path / "ratings.h5")
    model, loss = ModelConfig(factors=8).resolved()
    train = TrainConfig().resolved(loss)
    with BlockedFile(planted.path) as file:
        layout = Layout.of(model, train)
        sample = calibration.Sample.of_file(file, file.grid.size, layout)
        counts = file.counts()
        monkeypatch.setattr(calibration, "ROOM", 4 * sum(layout.floats(int(size)) for size in file.grid.col_sizes[:5]))
        narrow = calibration.Sample.of_file(file, 2, layout)
    assert np.diff(narrow.strip.offsets).tolist() == counts[:2, :5].tolist()
    assert np.diff(sample.strip.offsets).tolist() == counts.tolist()
    for fewer in (narrow, sample, sample.of_fewer(3), sample.of_fewer(1)):
        assert 0 < calibration.update_rate(fewer, model, loss, train, seconds=0.0) < math.inf
    assert np.diff(sample.of_fewer(3).strip.offsets).tolist() == counts[:3].tolist()
    assert calibration.disk_rate(planted.path) > 0


def test_the_network_is_measured_between_the_first_two_nodes():
    found = simulated.run(4, calibration.network_of, team=2)
    assert found == [found[0]] * 4
    assert found[0].bandwidth > 0
    assert found[0].latency > 0
    assert simulated.run(2, calibration.network_of, team=2) == [None, None]
    assert calibration.network_of(Serial()) is None


# Plans.


def test_a_plan_is_of_the_rank_that_needs_most():
    counts = np.full((6, 6), 100)
    counts[4] = 5000
    job = job_of(counts)
    needs = needs_most(job, quick(), 3, None, False)
    assert needs.ratings == 8 * 6 * (5000 + 100)
    lines = make_plan(job, quick(), [3, 1]).lines
    assert [line.ranks for line in lines] == [1, 3]
    assert lines[0].sent == 0
    epochs = [sent_in_epoch(job, 3, quick(), epoch) for epoch in range(1, 21)]
    assert lines[1].sent == round(sum(epochs) / 20) > 3 * 6 * BYTES
    assert [line.fits for line in lines] == [None, None]
    assert usual_ranks(16, quick()) == [1, 2, 4, 8]
    assert usual_ranks(16, quick(threads=4)) == [1, 2]
    assert usual_ranks(1, quick()) == [1]


def test_the_fewest_ranks_are_the_first_that_fit():
    job = Job.of_shape((4_000_000, 40_000), 10**7, ModelConfig(), TrainConfig(), grid=32)
    bound = needs_most(job, quick(), 4, 1, False).total  # as little as four ranks can do with
    totals = [needs_most(job, quick(), ranks, bound, False).total for ranks in range(1, 33)]
    fewest = fewest_ranks(job, quick(), bound)
    assert [total <= bound for total in totals] == [False] * (fewest - 1) + [True] * (33 - fewest)
    assert 1 < fewest <= 4
    plan = make_plan(job, quick(), [1, fewest], memory=bound)
    assert [line.fits for line in plan.lines] == [False, True]
    assert plan.fewest == plan.as_dict()["fewest_ranks"] == fewest


def test_blocks_of_a_description():
    job = Job.of_shape((1001, 999), 10**5, ModelConfig(factors=8), TrainConfig(seed=5), grid=10, skew=0.5)
    assert (job.rows.sum(), job.cols.sum(), job.size) == (1001, 999, 10)
    assert np.ptp(job.rows) <= 1
    drawn = np.concatenate([job.met(ring(10, 5, 1), step) for step in range(10)])
    assert drawn.mean() == pytest.approx(1000, rel=0.2)
    assert drawn.std() == pytest.approx(500, rel=0.3)
    assert np.array_equal(job.met(ring(10, 5, 1), 3), job.met(ring(10, 5, 1), 3))
    assert Job.of_shape((10**6, 10**6), 10**8, ModelConfig(), TrainConfig(), workers=100).size == 400
    with pytest.raises(ConfigError, match="as many as there are cells"):
        Job.of_shape((10, 10), 101, ModelConfig(), TrainConfig())
    with pytest.raises(ConfigError, match="a grid of 11 needs at least as many rows and columns"):
        Job.of_shape((10, 20), 100, ModelConfig(), TrainConfig(), grid=11)


def test_who_has_which_row_blocks():
    crews = Crews.of(11, 3, quick(threads=3, ranks_per_node=2))
    assert [span(11, 3, rank) for rank in range(3)] == [(0, 4), (4, 8), (8, 11)]
    assert crews.begins.tolist() == [0, 2, 3, 4, 6, 7, 8, 9, 10]
    assert crews.nodes.tolist() == [0] * 6 + [1] * 3
    assert crews.rank_begins.tolist() == [0, 4, 8]
    assert crews.node_begins.tolist() == [0, 6]
    assert crews.node_of_place.tolist() == [0] * 8 + [1] * 3


# The command line.

DESCRIBED = ("plan", "--shape", "1e5x1e4", "--nnz", "1e7", "--rate", "1e8", "--grid", "32")


def said(capsys, *arguments, code=0) -> str:
    """What a command line prints: its output if it succeeds, else its error."""
    try:
        ended = main([str(argument) for argument in arguments])
    except SystemExit as by_parser:
        ended = by_parser.code
    assert ended == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_plan_of_a_description(capsys):
    lines = said(capsys, *DESCRIBED, "--ranks", "4,1,2", "--memory", "1G", "--network", "100Gb,2us").splitlines()
    notes = [line for line in lines if line.startswith("# ")]
    assert notes[0].startswith("# 10,000,000 ratings of 100,000 × 10,000, grid 32, 32 factors + biases")
    assert "network 100 Gb/s, 2 µs (given); disk 500 MB/s (assumed)" in notes[2]
    assert notes[3] == "# fewest ranks within the memory: 1"
    head, *rows = [line.split("\t") for line in lines[len(notes) :]]
    assert head[0] == "ranks"
    assert head[-1] == "fits"
    assert [row[0] for row in rows] == ["1", "2", "4"]
    assert {row[-1] for row in rows} == {"yes"}
    seconds = [float(row[head.index("s/epoch")]) for row in rows]
    assert seconds[0] == pytest.approx(0.1, rel=0.02)
    assert seconds[0] > seconds[1] > seconds[2]
    found = json.loads(said(capsys, *DESCRIBED, "--json"))
    assert [line["ranks"] for line in found["plan"]] == [1, 2, 4, 8, 16]
    assert found["fewest_ranks"] is None
    assert found["plan"][1]["bytes_sent"] > 2 * 4 * 33 * 10_000


def test_plan_of_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    path = plant(tmp_path / "ratings.h5").path
    lines = said(capsys, "plan", path, "--factors", "8", "--ranks-per-node", "2", "--no-biases").splitlines()
    assert "M updates/s of a thread (measured), 1 a rank, 2 ranks a node" in lines[1]
    assert "(measured)" in lines[2]
    with BlockedFile(path) as file:
        assert lines[0].startswith(f"# {file.header.ratings:,} ratings of {file.header.rows:,} × ")
    rows = [line.split("\t") for line in lines[4:]]
    sent = lines[3].split("\t").index("sent")
    assert [row[sent] for row in rows[:2]] == ["0", "0"]
    (tmp_path / "given.toml").write_text('[model]\nfactors = 40\n[train]\noptimizer = "adagrad"\n')
    found = json.loads(said(capsys, "plan", path, "--config", tmp_path / "given.toml", "--rate", "1e8", "--json"))
    layout = Layout(40, True, 1)
    assert found["plan"][0]["rows"] == sum(4 * layout.floats(int(size)) for size in file.grid.row_sizes)


def test_plan_under_a_launcher_speaks_once(run_cli):
    done = run_cli(*DESCRIBED, "--ranks", "1,2", "--json", ranks=2)
    assert done.returncode == 0, done.stderr
    assert [line["ranks"] for line in json.loads(done.stdout)["plan"]] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan",), "nothing to plan for: give a blocked file, or --shape ROWSxCOLS and --nnz N"),
        (("plan", "--shape", "1e5x1e4"), "nothing to plan for"),
        (("plan", "--shape", "nonsense", "--nnz", "5"), "argument --shape: 'nonsense': expected rows and columns"),
        (("plan", "--shape", "5x-4", "--nnz", "5"), "argument --shape: '-4': expected an integer from 1 on"),
        ((*DESCRIBED[:4], "1.5"), "argument --nnz: '1.5': expected an integer"),
        ((*DESCRIBED[:4], "1e10"), "10,000,000,000 ratings in 100,000 × 10,000 cells"),
        (("plan", "some.h5", "--nnz", "5"), "some.h5: says itself what --nnz describes"),
        (("plan", "missing.h5"), "missing.h5: no such file"),
        ((*DESCRIBED, "--ranks", "64"), "64 ranks for a grid of 32: at most 32 can take part"),
        ((*DESCRIBED, "--ranks", "0"), "argument --ranks: '0': expected an integer from 1 on"),
        ((*DESCRIBED, "--memory", "1M"), "1,048,576 bytes are too few for a rank on any number of ranks: on 32,"),
        ((*DESCRIBED, "--network", "fast"), "argument --network: 'fast': expected bandwidth in bits (b)"),
        ((*DESCRIBED, "--disk", "0"), "argument --disk: '0': expected a number a second"),
        ((*DESCRIBED, "--rate", "1..2"), "argument --rate: '1..2': expected a number a second"),
        ((*DESCRIBED, "--skew", "-1"), "argument --skew"),
        ((*DESCRIBED, "--factors", "0"), "factors=0: expected an integer from 1 to 4096"),
    ],
)
def test_what_can_not_be_planned(capsys, arguments, message):
    code = 1 if "missing.h5" in arguments else 2
    assert message in said(capsys, *arguments, code=code)


def test_quantities():
    assert quantities.rate("2e8") == 2e8
    assert quantities.rate("500M") == quantities.rate("500MB") == 5e8
    assert quantities.rate_or_auto("auto") is None
    assert quantities.network("12.5GB,1ms") == Network(12.5e9, 1e-3)
    assert quantities.network("1Gbps,3us") == quantities.network("1Gb/s,3µs")


def test_replicas_and_checkpoints_are_planned(tmp_path, capsys):
    found = json.loads(said(capsys, *DESCRIBED, "--ranks", "1,4", "--json", "--replicas", "1"))["plan"]
    assert found[0]["safety"] == 0
    assert found[1]["safety"] > 3 * found[1]["rows"]
    with_checkpoint = json.loads(said(capsys, *DESCRIBED, "--ranks", "4", "--json", "--replicas", "1", "--checkpoint"))
    assert with_checkpoint["plan"][0]["safety"] == found[1]["safety"] // 3 * 4
    assert not with_checkpoint["plan"][0]["checkpoints_wait"]
    (tmp_path / "given.toml").write_text('[safety]\ncheckpoint = "here"\nreplicas = 1\n')
    memory = with_checkpoint["plan"][0]["memory"] - with_checkpoint["plan"][0]["copies"] - 1
    said_lines = said(
        capsys, *DESCRIBED, "--ranks", "4", "--config", tmp_path / "given.toml", "--memory", str(memory)
    ).splitlines()
    assert said_lines[-1].endswith("\tyes, checkpoints wait")
    assert "give one of them" in said(capsys, *DESCRIBED, "--replicas", "1", "--spill", code=2)
