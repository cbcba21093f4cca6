"""Kills a real training run again and again: what is left must continue to the very same end.

    python benchmarks/chaos.py --kills 50 --seed 0 --out chaos.json

Trains a tiny CoCa on the embedded world as a user would (`python -m big_mm.train`), first without
disturbance, then in campaigns: the process group gets SIGKILL at a random moment, the same command
starts again, and so on until a life reaches the last step. A moment is either an instant of a stage
that the progress lines show (start-up, compilation, steps, evaluation, any time at all), or a
file-system event of the program (a file of the record index, a line of metrics.jsonl, a file of a
checkpoint, its renaming, the deletion of an old one, ...) plus a random delay: chaos_hook/ counts
these from inside the otherwise unchanged program. Some lives end by SIGTERM instead, which is no
kill and must save. Campaigns take turns among worker processes and reading threads, and between a
guard that skips updates and one that goes back; records are damaged in all of them.

Compared with the undisturbed run, bit for bit: every line of metrics.jsonl except rates, the final
evaluation, the refused updates, which checkpoints are left, and the checksum of every array of the
last one. A lost commit is a step that
was committed when the process died, but that the next life does not begin with if it was the
newest, or that is gone later although the retention policy keeps it. Exits 1 on any difference.
"""

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from big_mm import spec as specs
from big_mm.data import tokenizers
from big_mm.data.contract import Contract
from big_mm.data.examples import Schema
from big_mm.data.pipeline import Pipeline
from big_mm.data.records import TFRecordSource
from big_mm.data.scenes import sampling, writer
from big_mm.data.tokenizers import SentencePiece
from big_mm.data.transforms import ChooseCaption, Decode, Tokenize
from big_mm.evaluators import Retrieval
from big_mm.losses import captioning, contrastive
from big_mm.models import variants
from big_mm.objectives.base import Weighted
from big_mm.spec import spec
from big_mm.training.checkpoint import Checkpoints
from big_mm.training.guard import Guard
from big_mm.training.optimizer import AdamW
from big_mm.training.run import Run
from big_mm.training.schedules import WarmupCosine

# Low enough that some updates of the run are refused.
SPIKE = 1.2
HOOK = pathlib.Path(__file__).parent / "chaos_hook"
IMAGE_SIZE, MAX_LEN, VOCABULARY, RECORDS, STEPS = 16, 12, 300, 96, 21
VARIANTS = {
    "skip": spec(Guard, spike=SPIKE, warmup=4),
    "rollback": spec(Guard, policy="rollback", spike=SPIKE, warmup=4, max_rollbacks=1000),
}

# File-system events of a run, as chaos_hook/ sees them: what they write, what they rename.
_STEP = r"/checkpoints/\d+"
EVENTS = {
    "index build": r"\.index",
    "config.json": r"^open \S*/run/config\.json",
    "metrics.jsonl": r"/metrics\.jsonl",
    "save begins": rf"^os\.mkdir \S*{_STEP}\.orbax",
    "save writes": rf"^open \S*{_STEP}\.orbax",
    "save commits": rf"^os\.rename \S*{_STEP}\.orbax\S* ",
    "deletion": rf"^(os\.remove|os\.rmdir|shutil\.rmtree) \S*{_STEP}(/|$)",
    "artifacts": r"/run/artifacts/",
    "final results": r"/run/(evaluation\.json|report\.html)",
}
# Of the others a moment is drawn after a line of progress; {stage: what the line shows}.
STAGES = {
    "start-up": "",
    "compiling": "compiling",
    "step": "contrastive",
    "evaluation": "evaluating",
}
STOP = "SIGTERM in a step"
PHASES = [*EVENTS, *STAGES, "any time", STOP]


def get_config(arg: str) -> Any:
    """The run that is killed; `arg` is DATA,VARIANT."""
    data, variant = arg.split(",")
    blocks = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
    model = variants.coca(
        "tiny",
        image_size=IMAGE_SIZE,
        patch_size=8,
        vocab_size=VOCABULARY,
        max_len=MAX_LEN,
        queries=4,
    )
    for stack in (model.image.blocks, model.text.blocks, model.decoder):
        stack.update(blocks)

    def source(split: str) -> Any:
        schema = spec(Schema, captions="caption_short")
        return spec(TFRecordSource, shards=f"{data}/{split}-*.tfrecord", schema=schema)

    return spec(
        Run,
        objective=spec(
            Weighted,
            model=model,
            losses={
                "contrastive": spec(contrastive.Softmax),
                "captioning": spec(captioning.CrossEntropy),
            },
        ),
        contract=spec(
            Contract,
            tokenizer=spec(SentencePiece, path=f"{data}/tokenizer.model"),
            image_size=IMAGE_SIZE,
            max_len=MAX_LEN,
        ),
        data=spec(
            Pipeline,
            sources=(source("train"),),
            transforms=(spec(Decode), spec(ChooseCaption), spec(Tokenize)),
            num_threads=1,
        ),
        optimizer=spec(AdamW, learning_rate=3e-3, schedule=spec(WarmupCosine, warmup=4)),
        steps=STEPS,
        batch_size=16,
        ema=0.9,
        log_every=1,
        eval_every=4,
        evaluators={"retrieval": spec(Retrieval, source=source("test_seen"), captions_per_image=1)},
        checkpoint=spec(
            Checkpoints, every=3, keep=2, keep_every=9, best="retrieval/image_to_text_r@1"
        ),
        guard=VARIANTS[variant],
        max_bad_share=0.5,
    )


def write_data(folder: pathlib.Path) -> None:
    """Shards with some damage, no index yet, and a vocabulary."""
    world = sampling.WORLDS["easy"]
    for split, number in (("train", RECORDS), ("test_seen", 16)):
        writer.write(str(folder), split, number, IMAGE_SIZE, num_shards=2, world=world)
    texts = (
        caption
        for index in range(RECORDS)
        for caption in writer.features("train", 0, index, IMAGE_SIZE, world)["caption_short"]
    )
    made = tokenizers.train(texts, VOCABULARY, model_type="bpe", hard_vocab_limit=False)
    (folder / "tokenizer.model").write_bytes(made)
    for shard in sorted(folder.glob("train-*.tfrecord")):
        content = bytearray(shard.read_bytes())
        for place in (len(content) // 3, 2 * len(content) // 3):
            content[place] ^= 1
        shard.write_bytes(content)


@dataclasses.dataclass
class Life:
    """One process from its start to its end."""

    command: list[str]
    environment: dict[str, str]
    lines: list[tuple[float, str]] = dataclasses.field(default_factory=list)

    def start(self) -> None:
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            env=os.environ | self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip()))

    def end_after(self, shown: str, occurrence: int, delay: float, how: int) -> None:
        """A signal `delay` seconds after the line of that number that shows something has come."""
        while self.process.poll() is None:
            found = (
                [at for at, line in list(self.lines) if shown in line] if shown else [self.begun]
            )
            if len(found) >= occurrence:
                time.sleep(max(0.0, found[occurrence - 1] + delay - time.monotonic()))
                break
            time.sleep(0.002)
        self.struck = time.monotonic()
        self.kill(how)

    def kill(self, how: int = signal.SIGKILL) -> None:
        try:
            os.killpg(self.process.pid, how)
        except ProcessLookupError:
            pass

    def end(self, timeout: float = 600.0) -> int:
        """Waits; the exit code."""
        code = self.process.wait(timeout)
        self.ended = time.monotonic()
        self.kill()  # what may be left of its group
        self.reader.join()
        self.process.stderr.close()
        return code

    @property
    def seconds(self) -> float:
        return self.lines[-1][0] - self.begun if self.lines else 0.0

    def first_step(self) -> int | None:
        """The step that it began with, as its first line of progress says."""
        for _, line in self.lines:
            if line.endswith("compiling"):
                return int(line.split()[1].split("/")[0].replace(",", ""))
        return None


class Campaign:
    """A workdir in which lives follow one another."""

    def __init__(self, root: pathlib.Path, number: int, variant: str, workers: int):
        self.folder = root / f"{number:03d}-{variant}-{workers}"
        self.workdir, self.log = self.folder / "run", self.folder / "events.log"
        self.data = self.folder / "data"
        shutil.copytree(root / "data", self.data)  # without the index, which is built anew
        self.variant, self.workers = variant, workers
        self.committed: set[int] = set()
        self.lost = 0

    def life(self, kill: list[Any] | None = None) -> Life:
        config = f"{__file__}:{self.data},{self.variant}"
        command = [sys.executable, "-m", "big_mm.train", "--config", config]
        command += ["--workdir", str(self.workdir), f"--config.data.num_workers={self.workers}"]
        hook = {"events": EVENTS, "log": str(self.log), "kill": kill}
        path = os.pathsep.join([str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {
            "PYTHONPATH": path,
            "CHAOS": json.dumps(hook),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return Life(command, environment)

    def steps(self) -> set[int]:
        """The committed steps; a folder whose deletion has begun is none."""
        folders = (self.workdir / "checkpoints").glob("*/_CHECKPOINT_METADATA")
        return {int(file.parent.name) for file in folders if file.parent.name.isdigit()}

    def account(self, life: Life, policy: Checkpoints) -> None:
        """Counts commits that are lost, after a life."""
        first, before, now = life.first_step(), self.committed, self.steps()
        if first is not None and first != max(before, default=0):
            self.lost += 1
            print(f"  LOST: began with step {first}, committed were {sorted(before)}")
        # Going back deletes what was saved off the schedule since.
        gone = {step for step in policy.kept(before | now, {}) - now if policy.due(step)}
        if gone:
            self.lost += len(gone)
            print(f"  LOST: {sorted(gone)} of {sorted(before)} are gone, there are {sorted(now)}")
        self.committed = now

    def results(self) -> dict[str, Any]:
        """All that must be the same at the end."""
        lines = [json.loads(s) for s in (self.workdir / "metrics.jsonl").read_text().splitlines()]
        manifest = self.workdir / "checkpoints" / str(STEPS) / "files" / "manifest.json"
        leaves = json.loads(manifest.read_text())["leaves"]
        content = {
            f"metrics.jsonl step {line['step']}": {
                name: value for name, value in line.items() if name != "images_per_second"
            }
            for line in lines
        }
        content |= {f"checkpoint {path}": leaf for path, leaf in leaves.items()}
        incidents = self.workdir / "incidents.jsonl"
        content["incidents.jsonl"] = incidents.read_text() if incidents.exists() else ""
        content["kept steps"] = sorted(self.steps())
        content["evaluation.json"] = json.loads((self.workdir / "evaluation.json").read_text())
        content["number of lines"] = len(lines)
        return content


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    return [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key)]


def parameter_hash(results: dict[str, Any]) -> str:
    chosen = {k: v for k, v in results.items() if k.startswith("checkpoint params/")}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass
class Reference:
    """An undisturbed run: its results, and how long and how often things happen in it."""

    results: dict[str, Any]
    seconds: float
    events: collections.Counter[str]
    lines: list[tuple[float, str]]

    @classmethod
    def run(cls, campaign: Campaign) -> "Reference":
        life = campaign.life()
        life.start()
        if life.end() != 0:
            sys.exit("the undisturbed run failed:\n" + "\n".join(line for _, line in life.lines))
        events = [line.split("\t")[0] for line in campaign.log.read_text().splitlines()]
        lines = [(at - life.begun, line) for at, line in life.lines]
        return cls(campaign.results(), life.seconds, collections.Counter(events), lines)

    def moment(self, phase: str, left: float, rng: random.Random) -> tuple[str, int, float]:
        """A random one of a stage: (what a line shows, its occurrence, seconds after it).

        `left` is the share of the run that the life has before it.
        """
        begin = self.lines[0][0]
        if phase == "any time":
            return "", 1, rng.uniform(0.0, begin + left * (self.seconds - begin))
        shown = STAGES["step" if phase == STOP else phase]
        if not shown:
            return shown, 1, rng.uniform(0.0, begin)
        starts = [i for i, (_, line) in enumerate(self.lines) if shown in line]
        number = rng.randint(1, max(1, int(left * len(starts) / 2)))
        at = starts[number - 1]
        following = min(at + 1, len(self.lines) - 1)
        return shown, number, rng.uniform(0.0, self.lines[following][0] - self.lines[at][0])


def strike(campaign: Campaign, reference: Reference, phase: str, rng: random.Random) -> Life:
    """One life, and its death in that phase unless it ends before."""
    left = 1 - max(campaign.committed, default=0) / STEPS
    if phase in EVENTS:
        if phase == "index build":
            for index in campaign.data.glob(".*.index"):
                index.unlink()
        number = rng.randint(1, max(1, int(left * reference.events[phase] / 2)))
        delay = 0.0 if rng.random() < 0.7 else rng.uniform(0.0, 0.1)
        life = campaign.life([phase, number, delay])
        life.start()
    else:
        life = campaign.life()
        shown, occurrence, delay = reference.moment(phase, left, rng)
        life.start()
        how = signal.SIGTERM if phase == STOP else signal.SIGKILL
        life.end_after(shown, occurrence, delay, how)
    return life


def chaos(arguments: argparse.Namespace, root: pathlib.Path) -> dict[str, Any]:
    """All campaigns; what came of them."""
    rng = random.Random(arguments.seed)
    (root / "data").mkdir()
    write_data(root / "data")
    for index in (root / "data").glob(".*.index"):
        index.unlink()
    (root / "compiled").mkdir(mode=0o700)
    references, order = {}, list(VARIANTS)
    for number, variant in enumerate(VARIANTS):
        references[variant] = Reference.run(Campaign(root, number, variant, workers=0))
        made = references[variant]
        refused = made.results["incidents.jsonl"].count("\n")
        print(
            f"undisturbed ({variant}): {made.seconds:.1f} s, {refused} updates refused, "
            f"parameters {parameter_hash(made.results)}"
        )
    deaths: collections.Counter[str] = collections.Counter()
    deck: list[str] = []
    lost = wrong = number = 0
    grace: list[float] = []
    runs = []

    def kills() -> int:
        return deaths.total() - deaths[STOP]

    while kills() < arguments.kills:
        variant, workers = order[number % len(order)], (0, 2)[number // len(order) % 2]
        number += 1
        campaign, reference = Campaign(root, 100 + number, variant, workers), references[variant]
        policy = specs.build(get_config(f"{root / 'data'},{variant}").checkpoint)
        story, code = [], -signal.SIGKILL
        while code != 0:
            phase = "to the end"
            if len(story) < arguments.lives and kills() < arguments.kills:
                deck = deck or rng.sample(PHASES, len(PHASES))
                phase = deck.pop()
                life = strike(campaign, reference, phase, rng)
            else:
                life = campaign.life()
                life.start()
            code = life.end()
            if code not in (0, os.EX_TEMPFAIL if phase == STOP else -signal.SIGKILL):
                print("\n".join(line for _, line in life.lines[-30:]))
                sys.exit(f"{campaign.folder.name} ended with status {code} in {phase!r}")
            if code != 0:
                deaths[phase] += 1
            if code == os.EX_TEMPFAIL:
                grace.append(life.ended - life.struck)
            story.append(f"{phase} at {life.first_step()}")
            campaign.account(life, policy)
        found = differences(reference.results, campaign.results())
        lost, wrong = lost + campaign.lost, wrong + len(found)
        runs.append({"campaign": campaign.folder.name, "lives": story, "differences": found})
        print(f"{campaign.folder.name}: {', '.join(story)}", flush=True)
        for line in found:
            print(f"  DIFFERENT: {line}")
        if not found and not campaign.lost:
            shutil.rmtree(campaign.folder)
    return {
        "kills": kills(),
        "lost_commits": lost,
        "differences": wrong,
        "phases": {phase: deaths[phase] for phase in PHASES},
        "sigterm_seconds": grace,
        "parameters": {name: parameter_hash(made.results) for name, made in references.items()},
        "campaigns": runs,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="how many in all (50)")
    parser.add_argument("--lives", type=int, default=8, help="kills a campaign at most (8)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="work here, and leave it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.keep or pathlib.Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        data = chaos(arguments, root.resolve())
    for phase, count in data["phases"].items():
        print(f"  {phase:20}{count:4}")
    if data["sigterm_seconds"]:
        print(f"SIGTERM was answered in {max(data['sigterm_seconds']):.1f} s at most")
    if arguments.out:
        arguments.out.write_text(json.dumps(data, indent=1) + "\n")
    print(
        f"{data['kills']} kills, {data['lost_commits']} lost commits, "
        f"{data['differences']} differences"
    )
    return int(bool(data["lost_commits"] or data["differences"]))


if __name__ == "__main__":
    sys.exit(main())
