"""open_clip's contestant in `train_step.py`: its own model and loss, in PyTorch, on a random batch.

Runs in an interpreter that has torch and open_clip (pip install open_clip_torch); never needs ours.
"""

import argparse
import contextlib
import ctypes
import json

import interleaved
import torch


def tolerate_missing_operators() -> None:
    """torchvision's compiled operators, which no model here uses, may not fit a CPU build of torch:
    importing it then fails where it registers them.
    """
    register = torch.library.register_fake

    def tolerant(*args, **options):
        decorate = register(*args, **options)

        def attempt(function):
            with contextlib.suppress(RuntimeError):
                return decorate(function)
            return function

        return attempt

    torch.library.register_fake = tolerant


def build(sizes: dict, device: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The model of these sizes and its loss."""
    tolerate_missing_operators()
    import open_clip
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP

    kind = sizes.pop("kind")
    if kind == "coca":
        model, loss = CoCa(**sizes), open_clip.CoCaLoss(2.0, 1.0)
    else:
        model, loss = CLIP(**sizes, output_dict=True), open_clip.ClipLoss()
    return model.to(device), loss


def keep_heap() -> None:
    """What big_mm.allocator does."""
    for key, value in ((-8, 1), (-4, 0), (-1, -1)):
        ctypes.CDLL(None).mallopt(key, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", help="JSON of the model's arguments")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--grad-checkpointing", action="store_true")
    arguments = parser.parse_args()
    keep_heap()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = json.loads(arguments.sizes)
    text = sizes["text_cfg"]
    side, length = sizes["vision_cfg"]["image_size"], text["context_length"]
    model, loss_fn = build(sizes, device)
    model.set_grad_checkpointing(arguments.grad_checkpointing)
    image = torch.rand(arguments.batch, 3, side, side, device=device)
    tokens = torch.randint(5, text["vocab_size"] - 1, (arguments.batch, length), device=device)
    tokens[:, -1] = text["vocab_size"] - 1  # the end of text, which CLIP finds as the largest id
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01, fused=True)
    forward = torch.compile(model) if arguments.compile else model
    mixed = torch.autocast(device, torch.bfloat16, enabled=arguments.dtype == "bfloat16")

    def step() -> None:
        with mixed:
            losses = loss_fn(**forward(image, tokens), output_dict=True)
            total = sum(losses.values())
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "version": f"torch {torch.__version__}",
    }
    interleaved.serve(step, arguments.steps, facts)


if __name__ == "__main__":
    main()
