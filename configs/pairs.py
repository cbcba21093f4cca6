"""A small CoCa on your own image-text pairs, for one CPU or GPU.

    python -m big_mm.data.tokenizers --shards 'DIR/train-*.tfrecord' --schema captions=caption \
        --vocab_size 2048 --out DIR/captions.model
    python -m big_mm.train --config configs/pairs.py:DIR --workdir runs/pairs \
        --config.contract.tokenizer.path=DIR/captions.model

DIR holds train-*.tfrecord and test-*.tfrecord with the features `image`, `caption` and `key` (other
names: `--config.data.sources.0.schema.image=jpg`). Several folders are mixed in equal shares:
`configs/pairs.py:DIR1+DIR2`. A folder written `DIR@label` has a class in its feature `label`, named
in `class_name`: it is scored by zero-shot classification, the others by retrieval.
"""

import pathlib

from big_mm.data.contract import Contract
from big_mm.data.examples import Schema
from big_mm.data.pipeline import Pipeline
from big_mm.data.records import TFRecordSource
from big_mm.data.tokenizers import SentencePiece
from big_mm.data.transforms import ChooseCaption, Decode, RandomResizedCrop, Tokenize
from big_mm.evaluators import Captioning, GroundingGap, Retrieval, ZeroShot, prompts
from big_mm.losses import captioning, contrastive
from big_mm.models import variants
from big_mm.objectives.base import Weighted
from big_mm.spec import spec
from big_mm.training.checkpoint import Checkpoints
from big_mm.training.muon import Muon
from big_mm.training.run import Run
from big_mm.training.schedules import WarmupCosine

IMAGE_SIZE, PATCH_SIZE, MAX_LEN, VOCABULARY = 48, 8, 24, 2048


def get_config(arg="."):
    folders = arg.split("+")
    model = variants.coca(
        "tiny",
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vocab_size=VOCABULARY,
        max_len=MAX_LEN,
        queries=16,
        blocks={"unroll": 4},
    )
    model.image.position = "sincos2d"
    return spec(
        Run,
        steps=3_000,
        batch_size=128,
        objective=spec(
            Weighted,
            model=model,
            # Small sets repeat their captions: equal ones are no negatives of each other.
            losses={
                "contrastive": spec(contrastive.Softmax, positives="text_id"),
                "captioning": spec(captioning.CrossEntropy),
            },
            weights={"contrastive": 1.0, "captioning": 1.0},
        ),
        contract=spec(
            Contract,
            tokenizer=spec(SentencePiece, path="captions.model"),
            image_size=IMAGE_SIZE,
            max_len=MAX_LEN,
        ),
        data=spec(
            Pipeline,
            sources=tuple(source(folder, "train") for folder in folders),
            weights=(1.0,) * len(folders),
            transforms=(
                spec(Decode),
                spec(RandomResizedCrop, scale=(0.6, 1.0)),
                spec(ChooseCaption),
                spec(Tokenize),
            ),
            cache=True,
        ),
        optimizer=spec(
            Muon,
            learning_rate=2e-3,
            schedule=spec(WarmupCosine, warmup=100),
            weight_decay=0.1,
            rms=1.0,
        ),
        evaluators={
            k: v for folder in folders for k, v in evaluators(folder, len(folders)).items()
        },
        checkpoint=spec(Checkpoints, every=500),
        log_every=20,
    )


def source(folder, split, extra=()):
    path, _, label = folder.partition("@")
    schema = spec(Schema, label=label or None, extra=extra)
    return spec(TFRecordSource, shards=f"{path}/{split}-*.tfrecord", schema=schema)


def evaluators(folder, count):
    path, _, label = folder.partition("@")
    suffix = f"_{pathlib.Path(path).name}" if count > 1 else ""
    test = source(folder, "test")
    if label:
        named = source(folder, "test", extra=("class_name",))
        return {
            f"zero_shot{suffix}": spec(
                ZeroShot, source=named, prompts=spec(prompts.Templates, templates=prompts.PHOTO)
            )
        }
    return {
        f"retrieval{suffix}": spec(Retrieval, source=test),
        f"captioning{suffix}": spec(Captioning, source=test),
        f"grounding{suffix}": spec(GroundingGap, source=test),
    }
