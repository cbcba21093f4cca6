"""Rewrites of captions by a language model, as LaCLIP makes them: a config of `big_mm.annotate`.

    python -m big_mm.annotate --config experiments/laclip/rewrite.py \\
        --shards 'data/train-*.tfrecord' --out data/rewritten \\
        --config.writer.url=http://localhost:8000/v1 --config.writer.model=NAME

adds the feature `rewrites`, four a caption, by any server with OpenAI's chat API. A service's key
is read from the environment variable that --config.writer.key names. Shards of img2dataset also
need --config.schema.captions=txt.

The paper's four rewrites come from four sets of examples; here two sets give two each.
"""

import ml_collections

from big_mm.curation.chat import Chat
from big_mm.curation.rewrite import Rewrite
from big_mm.spec import spec

# Alternative texts as the web has them, and what they may have meant.
WEB = (
    ("old fishing boats harbour print", "Weathered fishing boats lie side by side in a harbour."),
    ("IMG_2041 my girl first snow!!", "A young girl stands outside in the first snow of winter."),
    ("oak side table w/ drawer - walnut finish", "A small oak side table with a single drawer."),
    (
        "sunset over the bridge stock photo",
        "The sun sets behind a bridge, and the sky turns orange.",
    ),
    ("homemade tomato soup recipe", "A bowl of homemade tomato soup stands ready to be eaten."),
    ("cyclists during stage 4", "A group of cyclists races closely together along a road."),
    ("vintage clock face close up", "The hands and numerals of an old clock, seen from very near."),
    ("dog waiting at door", "A dog sits in front of a closed door and waits to be let out."),
)
# Plain descriptions, said in another way.
PLAIN = (
    ("a man reads on a bench in the park", "On a park bench, a man is busy with his book."),
    ("two cats asleep on a sofa", "A pair of cats has fallen asleep on the couch."),
    ("three boats tied up at a pier", "At the pier, three boats are moored next to each other."),
    (
        "a woman cuts bread in a kitchen",
        "Bread is being sliced by a woman who stands in a kitchen.",
    ),
    ("a red car parked beside a tree", "Next to a tree, somebody has left a red car."),
    ("children play football on grass", "A football game of some children on a lawn."),
    ("a train crosses a stone bridge", "The bridge of stone carries a train to the other side."),
    (
        "a plate with rice and green beans",
        "Green beans are served together with rice on one plate.",
    ),
)


def get_config() -> ml_collections.ConfigDict:
    writer = spec(Chat, url="http://localhost:8000/v1", model="Qwen/Qwen2.5-7B-Instruct", key=None)
    return spec(Rewrite, writer=writer, examples=(WEB, PLAIN), count=4)
