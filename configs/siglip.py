"""SigLIP (arXiv:2303.15343): two towers, each pair of image and text a yes-or-no question.

    python -m big_mm.train --config configs/siglip.py:B/16 --workdir gs://BUCKET/siglip \
        --config.data.sources.0.shards='gs://BUCKET/pairs/train-*.tfrecord' \
        --config.contract.tokenizer.path=gs://BUCKET/captions.model

Sizes: B/16, L/16. Needs TFRecords with an encoded image and captions, and a SentencePiece
model of 32,000 pieces. The paper's run is 9 billion pairs, 32,768 a step.
"""

from big_mm.data.contract import Contract
from big_mm.data.pipeline import Pipeline
from big_mm.data.records import TFRecordSource
from big_mm.data.tokenizers import SentencePiece
from big_mm.data.transforms import ChooseCaption, Decode, RandomResizedCrop, Tokenize
from big_mm.losses import contrastive
from big_mm.mesh import MeshConfig
from big_mm.models import variants
from big_mm.objectives.base import Weighted
from big_mm.spec import spec
from big_mm.training.checkpoint import Checkpoints
from big_mm.training.optimizer import AdamW
from big_mm.training.run import Run
from big_mm.training.schedules import WarmupCosine

VARIANTS = ("B/16", "L/16")
IMAGE_SIZE, MAX_LEN, VOCABULARY = 224, 64, 32_000


def get_config(arg="B/16"):
    return spec(
        Run,
        steps=275_000,
        batch_size=32_768,
        objective=spec(
            Weighted,
            model=variants.siglip(
                arg,
                image_size=IMAGE_SIZE,
                vocab_size=VOCABULARY,
                max_len=MAX_LEN,
                blocks={"dtype": "bfloat16", "remat": "dots_no_batch"},
            ),
            losses={"contrastive": spec(contrastive.Sigmoid)},
        ),
        contract=spec(
            Contract,
            tokenizer=spec(SentencePiece, path="captions.model"),
            image_size=IMAGE_SIZE,
            max_len=MAX_LEN,
            lowercase=True,
            padding="attended",
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
        optimizer=spec(
            AdamW,
            learning_rate=1e-3,
            schedule=spec(WarmupCosine, warmup=20_000),
            weight_decay=1e-4,
            b2=0.95,
        ),
        mesh=spec(MeshConfig, data=-1),
        checkpoint=spec(Checkpoints, every=5_000),
        log_every=100,
    )
