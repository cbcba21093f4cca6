"""CoCa as published (arXiv:2205.01917, section 4.1), in its three sizes.

    python -m big_mm.train --config configs/coca.py:base --workdir gs://BUCKET/coca \
        --config.data.sources.0.shards='gs://BUCKET/pairs/train-*.tfrecord' \
        --config.contract.tokenizer.path=gs://BUCKET/captions.model

Sizes: base (387 M parameters), large (795 M), giant (2.2 B). Needs TFRecords with an encoded image
and captions, and a SentencePiece model of 64,000 pieces (python -m big_mm.data.tokenizers). The
paper's run is 65,536 pairs a step on 2,048 TPU v4 for five days (giant). As it stands here, each
size fits 256 TPU v5e; docs/planning.md has the plans, and better ones where there is more memory.
"""

from big_mm.data.contract import Contract
from big_mm.data.pipeline import Pipeline
from big_mm.data.records import TFRecordSource
from big_mm.data.tokenizers import SentencePiece
from big_mm.data.transforms import ChooseCaption, Decode, RandomResizedCrop, Tokenize
from big_mm.losses import captioning, contrastive
from big_mm.mesh import MeshConfig
from big_mm.models import variants
from big_mm.objectives.base import Weighted
from big_mm.spec import spec
from big_mm.training.checkpoint import Checkpoints
from big_mm.training.optimizer import Adafactor
from big_mm.training.run import Run
from big_mm.training.schedules import Constant

VARIANTS = ("base", "large", "giant")
STEPS, WARMUP = 500_000, 10_000
IMAGE_SIZE, MAX_LEN, VOCABULARY = 288, 64, 64_000


def get_config(arg="base"):
    return spec(
        Run,
        steps=STEPS,
        batch_size=65_536,
        objective=spec(
            Weighted,
            model=variants.coca(
                arg,
                image_size=IMAGE_SIZE,
                patch_size=18,
                vocab_size=VOCABULARY,
                max_len=MAX_LEN,
                blocks={"dtype": "bfloat16", "remat": "full"},
            ),
            losses={
                "contrastive": spec(contrastive.Softmax),
                "captioning": spec(captioning.CrossEntropy, chunks=8),
            },
            weights={"contrastive": 1.0, "captioning": 2.0},
        ),
        contract=spec(
            Contract,
            tokenizer=spec(SentencePiece, path="captions.model"),
            image_size=IMAGE_SIZE,
            max_len=MAX_LEN,
        ),
        data=spec(
            Pipeline,
            sources=(spec(TFRecordSource, shards="train-*.tfrecord"),),
            transforms=(
                spec(Decode),
                spec(RandomResizedCrop, scale=(0.9, 1.0)),
                spec(ChooseCaption),
                spec(Tokenize),
            ),
            num_workers=16,
        ),
        # The paper decays linearly after the warm-up.
        optimizer=spec(
            Adafactor,
            learning_rate=8e-4,
            schedule=spec(Constant, warmup=WARMUP, cooldown=STEPS - WARMUP),
            weight_decay=0.01,
            b1=0.9,
        ),
        mesh=spec(MeshConfig, data=-1, fsdp=16),
        checkpoint=spec(Checkpoints, every=5_000),
        log_every=100,
    )
