"""A small CoCa on the embedded world of scenes: proof on two CPU cores that the main job works.

    make quickstart

Trains on 20,000 scenes of 52 colour-shape combinations, in under four minutes on 2 cores; then
scores zero-shot classification, retrieval among 1,000 scenes and captions, on new scenes of the
same combinations and, apart (`*_unseen`), on scenes of the 12 combinations never seen.
"""

from big_mm.data import scenes
from big_mm.data.contract import Contract
from big_mm.data.examples import Schema
from big_mm.data.pipeline import Pipeline
from big_mm.data.records import TFRecordSource
from big_mm.data.tokenizers import SentencePiece
from big_mm.data.transforms import ChooseCaption, Decode, Tokenize
from big_mm.evaluators import (
    Captioning,
    GroundingGap,
    Retrieval,
    SceneAccuracy,
    ZeroShot,
    prompts,
)
from big_mm.losses import captioning, contrastive
from big_mm.models import variants
from big_mm.objectives.base import Weighted
from big_mm.spec import spec
from big_mm.training.checkpoint import Checkpoints
from big_mm.training.muon import Muon
from big_mm.training.run import Run
from big_mm.training.schedules import WarmupCosine

DATA = "runs/scenes"
IMAGE_SIZE, PATCH_SIZE, MAX_LEN, VOCABULARY = 48, 12, 16, 512


def get_config(arg=DATA):
    model = variants.coca(
        "tiny",
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vocab_size=VOCABULARY,
        max_len=MAX_LEN,
        queries=16,
        pooling="parallel",
        blocks={"unroll": 4},
    )
    model.image.position = "sincos2d"
    # The light backgrounds become zeros, from which the objects stand out.
    model.image.mean, model.image.std = (0.9, 0.9, 0.9), (0.25, 0.25, 0.25)
    return spec(
        Run,
        steps=700,
        batch_size=128,
        objective=spec(
            Weighted,
            model=model,
            # Short captions repeat: equal ones are no negatives of each other.
            losses={
                "contrastive": spec(contrastive.Softmax, positives="text_id"),
                "captioning": spec(captioning.CrossEntropy),
            },
            weights={"contrastive": 1.0, "captioning": 2.0},
        ),
        contract=spec(
            Contract,
            tokenizer=spec(SentencePiece, path=f"{arg}/tokenizer.model"),
            image_size=IMAGE_SIZE,
            max_len=MAX_LEN,
        ),
        data=spec(
            Pipeline,
            sources=(source(arg, "train"),),
            transforms=(spec(Decode), spec(ChooseCaption), spec(Tokenize)),
            num_threads=1,
            cache=True,
        ),
        optimizer=spec(
            Muon,
            learning_rate=2e-3,
            schedule=spec(WarmupCosine, warmup=50, final=0.01),
            weight_decay=0.05,
            rms=1.0,
        ),
        evaluators=evaluators(arg, "seen", "") | evaluators(arg, "unseen", "_unseen"),
        checkpoint=spec(Checkpoints, every=300),
        log_every=20,
    )


def evaluators(data, kinds, suffix):
    test = source(data, f"test_{kinds}", extra=("scene",))
    return {
        f"zero_shot{suffix}": spec(
            ZeroShot,
            source=source(data, f"zero_shot_{kinds}", label="label"),
            classnames=scenes.CLASS_NAMES,
            prompts=spec(prompts.Templates, templates=scenes.PROMPTS),
        ),
        f"retrieval{suffix}": spec(
            Retrieval, source=source(data, f"retrieval_{kinds}"), captions_per_image=1
        ),
        f"captioning{suffix}": spec(Captioning, source=test, scorer=spec(SceneAccuracy)),
        f"grounding{suffix}": spec(GroundingGap, source=test),
    }


def source(data, split, **schema):
    return spec(
        TFRecordSource,
        shards=f"{data}/{split}-*.tfrecord",
        schema=spec(Schema, captions="caption_short", **schema),
    )
