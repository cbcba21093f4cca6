"""The text towers that open_clip takes from Hugging Face by name: BERT and RoBERTa.

A name says everything that its weights do not: heads, the norms' epsilon, where positions begin.
"""

import dataclasses

import ml_collections

from big_mm.interop.settings import nearest
from big_mm.models import variants
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Tower:
    """What a name stands for.

    Attributes:
      size: one of `variants.TOWERS`.
      vocab_size: its embeddings.
      roberta: the padding has the id 1, the first token the position 2, and there is one segment;
        in BERT these are 0, 0 and two.
      max_len: tokens of a text.
    """

    size: str
    vocab_size: int
    roberta: bool = False
    max_len: int = 512

    def spec(self) -> ml_collections.ConfigDict:
        """The spec of our tower, read at its first token."""
        return variants.bert(
            self.size,
            vocab_size=self.vocab_size,
            max_len=self.max_len,
            blocks={"norm_eps": 1e-5 if self.roberta else 1e-12},
            token_types=1 if self.roberta else 2,
            position_offset=2 if self.roberta else 0,
        )


_BIOMED = "microsoft/BiomedNLP-{}-base-uncased-abstract"
_ROBERTA, _XLM = (50_265, True), (250_002, True)
# The first name of equal towers is the one that is written.
TOWERS: dict[str, Tower] = {
    "bert-base-uncased": Tower("B", 30_522),
    "bert-large-uncased": Tower("L", 30_522),
    "bert-base-cased": Tower("B", 28_996),
    "bert-large-cased": Tower("L", 28_996),
    "bert-base-multilingual-cased": Tower("B", 119_547),
    "bert-base-chinese": Tower("B", 21_128),
    "roberta-base": Tower("B", *_ROBERTA),
    "roberta-large": Tower("L", *_ROBERTA),
    "xlm-roberta-base": Tower("B", *_XLM),
    "xlm-roberta-large": Tower("L", *_XLM),
    "google-bert/bert-base-uncased": Tower("B", 30_522),
    "google-bert/bert-large-uncased": Tower("L", 30_522),
    "FacebookAI/roberta-base": Tower("B", *_ROBERTA),
    "FacebookAI/roberta-large": Tower("L", *_ROBERTA),
    "FacebookAI/xlm-roberta-base": Tower("B", *_XLM),
    "FacebookAI/xlm-roberta-large": Tower("L", *_XLM),
    _BIOMED.format("BiomedBERT"): Tower("B", 30_522),
    _BIOMED.format("PubMedBERT"): Tower("B", 30_522),
}


def tower(name: str) -> Tower:
    """What a name stands for.

    Raises:
      UserError: an unknown name; gives the nearest known.
    """
    if name not in TOWERS:
        raise UserError(f"text_cfg.hf_model_name={name!r} is not supported{nearest(name, TOWERS)}")
    return TOWERS[name]


def name_of(text: TextTransformer) -> str:
    """The name of a tower of ours, whatever reads it; types and initial values aside.

    Raises:
      UserError: no name that is known here.
    """
    for name, known in TOWERS.items():
        if _facts(_built(known)) == _facts(text):
            return name
    blocks = text.blocks
    raise UserError(
        "open_clip takes BERT from Hugging Face by name, and none of the names known here has "
        f"width={blocks.width}, depth={blocks.depth}, heads={blocks.heads}, mlp_dim="
        f"{blocks.mlp_dim}, activation={blocks.activation!r}, norm_eps={blocks.norm_eps}, "
        f"vocab_size={text.vocab_size}, max_len={text.max_len}, token_types={text.token_types}, "
        f"position_offset={text.position_offset}"
    )


def _built(known: Tower) -> TextTransformer:
    made = dict(known.spec())
    blocks = {k: v for k, v in made.pop("blocks").items() if k != "_class_"}
    made.pop("_class_")
    return TextTransformer(blocks=Transformer(**blocks), **made)


def _facts(text: TextTransformer) -> tuple[object, ...]:
    blocks = text.blocks
    return (
        (blocks.width, blocks.depth, blocks.heads, blocks.mlp_dim, blocks.activation),
        (blocks.norm, blocks.norm_eps, blocks.norm_bias, blocks.layer_scale, blocks.use_bias),
        (blocks.qkv_bias is not False, blocks.out_bias is not False, blocks.cross_attention),
        (text.vocab_size, text.max_len, text.token_types, text.position_offset),
        (text.causal, text.mask_padding),
    )
