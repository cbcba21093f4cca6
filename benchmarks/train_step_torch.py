"""The peer of `train_step.py`: the same CoCa in plain PyTorch, trained on the same batch.

    python benchmarks/train_step_torch.py FOLDER [--compile] [--keep-heap] [--steps N]

FOLDER holds sizes.json, batch.npz and params.npz as `train_step.py` writes them. Needs torch alone.
"""

import argparse
import ctypes
import json
import math
import pathlib

import interleaved
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention, or cross-attention when a context is given."""

    def __init__(self, width: int, heads: int, cross: bool = False):
        super().__init__()
        self.heads = heads
        if cross:
            self.query = nn.Linear(width, width)
            self.kv = nn.Linear(width, 2 * width)
        else:
            self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        if context is None:
            query, key, value = (self._split(part) for part in self.qkv(x).chunk(3, dim=-1))
        else:
            query = self._split(self.query(x))
            key, value = (self._split(part) for part in self.kv(context).chunk(2, dim=-1))
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm: attention, cross-attention if asked for, MLP."""

    def __init__(self, width: int, heads: int, mlp_dim: int, eps: float, cross: bool):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps)
        self.attention = Attention(width, heads)
        if cross:
            self.cross_attention_norm = nn.LayerNorm(width, eps)
            self.cross_attention = Attention(width, heads, cross=True)
        self.mlp_norm = nn.LayerNorm(width, eps)
        self.up = nn.Linear(width, mlp_dim)
        self.down = nn.Linear(mlp_dim, width)

    def forward(
        self, x: Tensor, mask: Tensor | None, causal: bool, context: Tensor | None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask=mask, causal=causal)
        if context is not None:
            x = x + self.cross_attention(self.cross_attention_norm(x), context)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class Stack(nn.ModuleList):
    """Blocks of the sizes that sizes.json gives."""

    def __init__(self, sizes: dict, cross: bool = False):
        keys = ("width", "heads", "mlp_dim", "eps")
        super().__init__(Block(*(sizes[key] for key in keys), cross) for _ in range(sizes["depth"]))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        context: Tensor | None = None,
    ) -> Tensor:
        for block in self:
            x = block(x, mask, causal, context)
        return x


class Pooler(nn.Module):
    """Learned queries that read a sequence."""

    def __init__(self, queries: int, width: int, heads: int, eps: float):
        super().__init__()
        self.query = nn.Parameter(torch.empty(queries, width))
        self.attention = Attention(width, heads, cross=True)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.attention(self.query.expand(len(x), -1, -1), x))


class CoCa(nn.Module):
    """big_mm.models.coca.CoCa without projections, and its two losses."""

    def __init__(self, sizes: dict):
        super().__init__()
        image, text = sizes["image"], sizes["text"]
        width, eps = text["width"], text["eps"]
        self.cascade = sizes["pooling"] == "cascade"
        self.weights = [sizes["weights"][name] for name in ("contrastive", "captioning")]
        self.patch_size = sizes["patch_size"]
        self.patch = nn.Linear(3 * self.patch_size**2, image["width"])
        patches = (sizes["image_size"] // self.patch_size) ** 2
        self.image_positions = nn.Parameter(torch.empty(patches, image["width"]))
        self.image = Stack(image)
        self.image_norm = nn.LayerNorm(image["width"], eps)
        self.pooler = Pooler(sizes["queries"], width, text["heads"], eps)
        self.contrastive_pooler = Pooler(1, width, text["heads"], eps)
        self.embedding = nn.Embedding(sizes["vocab_size"], width)
        self.text_positions = nn.Parameter(torch.empty(sizes["max_len"] + 1, width))
        self.cls = nn.Parameter(torch.empty(width))
        self.text = Stack(text)
        self.text_norm = nn.LayerNorm(width, eps)
        self.decoder = Stack(sizes["decoder"], cross=True)
        self.norm = nn.LayerNorm(width, eps)
        self.caption_head = nn.Linear(width, sizes["vocab_size"], bias=False)
        self.log_scale = nn.Parameter(torch.empty(()))

    def forward(self, image: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
        """The weighted sum of the contrastive and the captioning loss."""
        batch, length = tokens.shape
        x = self.patch(self._patches(image)) + self.image_positions
        x = self.image_norm(self.image(x))
        image_tokens = self.pooler(x)
        image_embedding = self.contrastive_pooler(image_tokens if self.cascade else x)[:, 0]

        x = self.embedding(tokens) + self.text_positions[:length]
        cls = (self.cls + self.text_positions[-1]).expand(batch, 1, -1)
        seen = torch.ones(length + 1, length + 1, dtype=torch.bool).tril().repeat(batch, 1, 1, 1)
        seen[:, 0, -1, :-1] = valid
        x = self.text(torch.cat([x, cls], dim=1), seen)
        text_embedding = self.text_norm(x[:, -1])
        x = self.decoder(x[:, :length], causal=True, context=image_tokens)
        logits = self.caption_head(self.norm(x))

        unit = [F.normalize(e, dim=-1) for e in (image_embedding, text_embedding)]
        similarity = self.log_scale.exp().clamp(max=100.0) * unit[0] @ unit[1].T
        own = torch.arange(batch)
        contrastive = F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)
        target = tokens[:, 1:].masked_fill(~valid[:, 1:], -100)
        captioning = F.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten())
        return self.weights[0] * contrastive / 2 + self.weights[1] * captioning

    def _patches(self, image: Tensor) -> Tensor:
        size = self.patch_size
        x = (image.float() / 255 - 0.5) / 0.5
        x = x.unfold(1, size, size).unfold(2, size, size)  # batch, rows, columns, channel, y, x
        return x.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)


def load(model: CoCa, params: dict[str, np.ndarray]) -> None:
    """Copies big_mm's parameters, {path: array}, and checks that none is left over."""
    state = {
        ours: np.asarray(params.pop(theirs))
        for ours, theirs in {
            "image_positions": "image/position_embedding",
            "embedding.weight": "text/embedding",
            "text_positions": "text/position_embedding",
            "cls": "text/cls",
            "log_scale": "temperature/log_scale",
            "pooler.query": "pooler/query",
            "contrastive_pooler.query": "contrastive_pooler/query",
        }.items()
    }
    state["caption_head.weight"] = params.pop("caption_head/kernel").T
    for path in sorted(params):
        parent, leaf = path.rsplit("/", 1)
        for name, value in _layers(parent, params.pop(path)):
            if leaf == "kernel":  # [in..., out...]
                inputs = value.shape[:2] if name.endswith("attention.out") else value.shape[:1]
                state[f"{name}.weight"] = value.reshape(math.prod(inputs), -1).T
            else:
                state[f"{name}.{'weight' if leaf == 'scale' else leaf}"] = value.reshape(-1)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    model.load_state_dict(tensors)


def _layers(parent: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """A parameter's name here, for each layer of a stack."""
    name = parent.replace("mlp/", "").replace("/", ".")
    name = {"image.patch": "patch", "image.norm": "image_norm", "text.norm": "text_norm"}.get(
        name, name
    )
    stack, stacked, rest = name.replace("blocks.layers", "layers").partition(".layers.")
    if not stacked:
        return [(name, value)]
    return [(f"{stack}.{i}.{rest}", layer) for i, layer in enumerate(value)]


def keep_heap() -> None:
    """What big_mm.allocator does."""
    for key, value in ((-8, 1), (-4, 0), (-1, -1)):
        ctypes.CDLL(None).mallopt(key, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--keep-heap", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.keep_heap:
        keep_heap()
    sizes = json.loads((arguments.folder / "sizes.json").read_text())
    model = CoCa(sizes)
    load(model, dict(np.load(arguments.folder / "params.npz")))
    batch = np.load(arguments.folder / "batch.npz")
    inputs = [torch.from_numpy(batch[key]) for key in ("image", "tokens", "token_mask")]
    inputs[1] = inputs[1].long()
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and "pos" not in name]
    others = [p for p in model.parameters() if all(p is not q for q in decayed)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=1e-6,
        fused=True,
    )
    forward = torch.compile(model) if arguments.compile else model

    def step() -> float:
        loss = forward(*inputs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    facts = {
        "loss": step(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "version": f"torch {torch.__version__}",
        "threads": torch.get_num_threads(),
    }
    assert math.isfinite(facts["loss"])
    interleaved.serve(step, arguments.steps, facts)


if __name__ == "__main__":
    main()
