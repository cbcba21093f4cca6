"""Side by side with the peers themselves: every public architecture by name and shape, what we
write read by them, and the golden files computed again.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from big_mm import spec, trees
from big_mm.data.contract import Contract
from big_mm.interop import (
    architectures,
    hugging_face,
    mapping,
    open_clip,
    open_clip_table,
    text_towers,
    timm_trunks,
    writing,
)
from big_mm.models import variants
from big_mm.spec import UserError
from tests.interop import cases, foreign, make_golden

pytestmark = pytest.mark.peer
# Why open_clip 3.3's own configs are refused, by a part of the message, and how many.
REFUSED = {"is a ResNet": 10, "hf_model_name": 6, "timm_model_name": 48, "attentional_pool": 2}


@pytest.fixture(scope="module")
def peers():
    pytest.importorskip("torch")
    make_golden.tolerate_missing_torchvision_operators()
    return pytest.importorskip("open_clip")


@pytest.fixture
def tiny_towers(peers, monkeypatch):
    import timm

    make_golden.register_trunks(timm)
    foreign.register_tiny_towers(monkeypatch)


@pytest.fixture
def hub(peers, monkeypatch):
    """Configs of text towers by name, as the hub has them."""
    transformers = pytest.importorskip("transformers")

    def config(name):
        if name in cases.TEXT_TOWERS:
            said = dict(cases.TEXT_TOWERS[name][0])
        else:
            tower = text_towers.TOWERS[name]
            width, depth, heads, mlp_dim = variants.TOWERS[tower.size]
            said = {"model_type": "roberta" if tower.roberta else "bert"}
            said |= {"vocab_size": tower.vocab_size, "hidden_size": width}
            said |= {"num_hidden_layers": depth, "num_attention_heads": heads}
            said |= {"intermediate_size": mlp_dim}
            roberta = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
            said |= roberta if tower.roberta else {}
        kinds = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
        return getattr(transformers, f"{kinds[said.pop('model_type')]}Config")(**said)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", config)


def test_every_config_of_open_clip_is_the_same_architecture_or_refused(peers, hub):
    import torch

    folder = pathlib.Path(peers.__file__).parent / "model_configs"
    same, refused = [], dict.fromkeys(REFUSED, 0)
    for file in sorted(folder.glob("*.json")):
        config = json.loads(file.read_text())
        try:
            model = spec.build(open_clip.model_spec(config, file.stem))
        except UserError as error:
            reason = next((word for word in REFUSED if word in str(error)), str(error))
            refused[reason] = refused.get(reason, 0) + 1
            continue
        arguments = dict(config)
        bert = arguments["text_cfg"].get("hf_model_name") is not None
        custom = arguments.pop("custom_text", False) or bert
        arguments["text_cfg"] |= {"hf_model_pretrained": False} if bert else {}
        kind = peers.coca_model.CoCa if "multimodal_cfg" in config else peers.model.CLIP
        kind = peers.model.CustomTextCLIP if custom and kind is peers.model.CLIP else kind
        with torch.device("meta"):
            theirs = {k: tuple(v.shape) for k, v in kind(**arguments).state_dict().items()}
        table = open_clip_table.table(model, open_clip_table.layout(config, theirs))
        assert mapping.expected(table, mapping.shapes_of(model)) == theirs, file.stem
        same.append(file.stem)
    assert refused == REFUSED
    assert len(same) == 78


def test_architectures_by_name_are_open_clips(peers):
    for name, ours in architectures.ARCHITECTURES.items():
        theirs = peers.get_model_config(name)
        if theirs is None:
            theirs = peers.get_model_config(name.removesuffix("-quickgelu")) | {"quick_gelu": True}
        found, expected = (open_clip.model_spec(x, name) for x in (ours, theirs))
        assert found == expected, name


def test_every_trunk_is_timms(peers):
    import timm
    import torch

    acts = {"GELU": "gelu_exact", "GELUTanh": "gelu", "QuickGELU": "quick_gelu"}
    for name, ours in timm_trunks.TRUNKS.items():
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=0)
        block, norm = theirs.blocks[0], type(theirs.norm).__name__
        found = timm_trunks.Trunk(
            width=theirs.embed_dim,
            depth=len(theirs.blocks),
            heads=block.attn.num_heads,
            mlp_dim=block.mlp.fc1.out_features,
            image_size=theirs.patch_embed.img_size[0],
            patch_size=theirs.patch_embed.patch_size[0],
            pool=theirs.global_pool,
            registers=theirs.num_reg_tokens,
            clip=type(theirs.norm_pre).__name__ != "Identity",
            activation=acts[type(block.mlp.act).__name__],
            qkv_bias=block.attn.qkv.bias is not None,
            layer_scale=ours.layer_scale if hasattr(block.ls1, "gamma") else 0.0,
            fc_norm=norm == "Identity",
        )
        assert found == ours, name
        assert block.norm1.eps == (1e-5 if ours.clip else 1e-6), name
        if theirs.attn_pool is not None:
            assert acts[type(theirs.attn_pool.mlp.act).__name__] == ours.activation, name


def clip(**options):
    blocks = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24}
    made = variants.clip("B/8", image_size=cases.SIZE, vocab_size=cases.VOCAB, max_len=cases.LENGTH)
    made.embed_dim, made.text.pool, made.text.eos_id = 12, "eos", cases.EOS
    for part in (made.image.blocks, made.text.blocks):
        part.update({**blocks, **options})
    return made


def siglip():
    made = variants.siglip("Ti/8", image_size=cases.SIZE, vocab_size=cases.VOCAB, max_len=7)
    made.embed_dim = 16
    for part in (made.image.blocks, made.text.blocks):
        part.update({"width": 16, "depth": 2, "heads": 2, "mlp_dim": 24})
    return made


def coca():
    made = variants.open_clip_coca(
        "B/32",
        image_size=cases.SIZE,
        vocab_size=cases.VOCAB,
        max_len=cases.LENGTH,
        queries=5,
        pooler_heads=2,
        embed_dim=16,
    )
    made.image.patch_size = 8
    for part, width in ((made.image.blocks, 24), (made.text.blocks, 16), (made.decoder, 16)):
        part.update({"width": width, "depth": 2, "heads": width // 8, "mlp_dim": 4 * width})
    return made


def written(folder: pathlib.Path, made, form: str, pad_id: int | None = None):
    """Writes a model of random parameters; it and its outputs for the cases' inputs."""
    model = spec.build(made)
    contract = Contract(image_size=cases.SIZE, max_len=cases.LENGTH)
    batch = foreign.batch(pad_id)
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    flat = {k: v + cases.array(k, v.shape) / 4 for k, v in trees.flatten(params).items()}
    params = trees.unflatten(flat)
    writing.WRITERS[form](folder, model, params, contract)
    return model, jax.jit(model.apply)({"params": params}, batch)


def timm_siglip():
    return open_clip.model_spec(cases.OPEN_CLIP["siglip"], "config")


def registers():
    return open_clip.model_spec(cases.OPEN_CLIP["registers"], "config")


def bert():
    return open_clip.model_spec(cases.OPEN_CLIP["bert"], "config")


def roberta():
    return open_clip.model_spec(cases.OPEN_CLIP["roberta"], "config")


@pytest.mark.parametrize("made", [clip, coca, timm_siglip, registers, bert, roberta])
def test_open_clip_computes_the_same_of_what_we_write(peers, hub, tiny_towers, tmp_path, made):
    pad_id = {bert: 0, roberta: 1}.get(made)
    model, ours = written(tmp_path, made(), "open_clip", pad_id)
    theirs = peers.create_model(f"local-dir:{tmp_path}").eval()
    tokens = cases.TOKENS if pad_id is None else cases.padded(pad_id)
    found = make_golden.open_clip_outputs(theirs, model.image.mean, model.image.std, tokens)
    for side in ("image", "text"):
        np.testing.assert_allclose(found[side], ours[f"{side}_embedding"], atol=1e-5)
    if "caption_logits" in found:
        np.testing.assert_allclose(
            found["caption_logits"], ours["caption_logits"][:, :-1], atol=1e-5
        )
        loaded = foreign.Loaded(tmp_path)
        theirs = found["captions"]["greedy"]
        assert without_end(loaded.captions(min_len=3)) == without_end(theirs)


def without_end(captions):
    """Theirs put an eos in the last place, ours leave a full caption without."""
    return [[id for id in row if id != cases.EOS][: cases.LENGTH - 1] for row in captions]


def chinese_clip():
    return hugging_face.model_spec(cases.HUGGING_FACE["chinese_clip"], "config")


@pytest.mark.parametrize("made", [clip, siglip, chinese_clip])
def test_transformers_computes_the_same_of_what_we_write(peers, tmp_path, made):
    transformers = pytest.importorskip("transformers")
    import torch

    pad_id = {chinese_clip: 0}.get(made)
    model, ours = written(tmp_path, made(), "hugging_face", pad_id)
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    pixels = torch.tensor(cases.pixels(model.image.mean, model.image.std))
    tokens = torch.tensor(cases.TOKENS if pad_id is None else cases.padded(pad_id)).long()
    mask = {} if pad_id is None else {"attention_mask": tokens != pad_id}
    with torch.no_grad():
        found = theirs(pixel_values=pixels, input_ids=tokens, **mask)
    np.testing.assert_allclose(found.image_embeds, ours["image_embedding"], atol=1e-5)
    np.testing.assert_allclose(found.text_embeds, ours["text_embedding"], atol=1e-5)


@pytest.mark.parametrize("family", ["open_clip", "hugging_face"])
def test_the_golden_files_are_what_the_peers_compute(peers, family):
    pytest.importorskip("transformers")
    now, stored = make_golden.FAMILIES[family]()["cases"], cases.golden(family)["cases"]
    assert now.keys() == stored.keys()
    for name, case in stored.items():
        for key, value in case.items():
            if key in ("names", "captions"):
                assert now[name][key] == value, (name, key)
            else:
                np.testing.assert_allclose(now[name][key], value, atol=2e-5, err_msg=name)
